// What an answer to a capsule means, and what to do about it. docs/clients.md, "When to send it again", has the rules.

const decisions = {
  SUCCESS: ['good', 'Oz found a living person. The app lets them in: this is the only accept there is.'],
  DECLINED: ['bad', 'At least one of Oz’s checks did not pass. The app rejects.'],
  OPERATOR_REQUIRED: ['wait', 'Oz wants a person to look at this. Until then the app neither accepts nor rejects.'],
  FAILED: ['bad', 'Oz could not finish its analyses. That is neither an accept nor a reject: no entry.'],
  INVALID: ['bad', 'The capsule does not count.'],
  UNAVAILABLE: ['wait', 'Oz gave no usable answer, so nothing was decided. That is never an accept.'],
};

// By the last word of a problem's type: what it means to a person, and what helps: anew, again, later or nothing.
const problems = {
  'container': ['Oz could not open the capsule: it is damaged, expired or was used before.', 'anew'],
  'container-again': ['Oz had used the capsule after all when it said that it was busy. That happens: a capsule counts once.', 'anew'],
  'empty-capsule': ['The capsule is empty.', 'anew'],
  'binding': ['The capsule belongs to another user or session.', 'anew'],
  'replayed': ['This capsule was here before. One capsule counts once.', 'anew'],
  'overloaded': ['Too many capsules at once. Nothing was decided, and this one may come again.', 'again'],
  'unreachable': ['The gateway cannot reach Oz. Nothing was sent there.', 'again'],
  'unauthorized': ['Oz does not accept this gateway. Its operator must act; you cannot.', 'later'],
  'too_large_for_oz': ['Oz takes no capsule of this size. The operator must act.', 'later'],
  'unexpected_status': ['Oz answered with an error. Nothing was decided.', 'anew'],
  'malformed_answer': ['What Oz answered cannot be trusted: it is cut, contradicts itself or is no folder at all. Nothing was decided.', 'anew'],
  'connection_lost': ['The connection to Oz was lost after the capsule had been sent. It may have been used.', 'anew'],
  'timeout': ['Oz did not answer in time. The capsule may have been used.', 'anew'],
  'store_unavailable': ['The gateway cannot tell used capsules from new ones now.', 'anew'],
  'upload-timeout': ['The upload took too long or stood still.', 'again'],
  'unreadable-capsule': ['The upload was cut.', 'again'],
  'capsule-too-large': ['The capsule is larger than this site allows.', 'nothing'],
};

const helps = {
  anew: 'Capture anew: the next capsule gets a session token of its own.',
  again: 'Send the same capsule again.',
  later: 'Try again later.',
  nothing: 'This page must be mended.',
};

// judge returns {tone, title, meaning, advice, next, waits, decision, problem}. Waits is the number of seconds after which the
// same capsule is to be sent again by itself.
export function judge({status, said, retryAfter}, tries) {
  const decision = said?.oz_headers?.['X-Oz-Decision'];
  if (decision) return byDecision(decision, said);
  const problem = String(said?.type ?? '').split(':').pop();
  const row = problem === 'container' && tries > 1 ? 'container-again' : problem;
  const [meaning, help] = problems[row] ?? [said?.detail ?? `The site answered ${status}.`, byStatus(status)];
  const waits = status === 503 && help === 'again' && retryAfter > 0 ? retryAfter : 0;
  return {
    tone: 'wait', title: said?.title ?? said?.verdict ?? `Refused with ${status}`, meaning, waits, decision: '', problem,
    advice: waits ? '' : helps[help], next: help === 'nothing' ? '' : help === 'later' ? 'anew' : help,
  };
}

function byDecision(decision, said) {
  const [tone, meaning] = decisions[decision] ?? decisions.UNAVAILABLE;
  const reason = said.oz_headers['X-Oz-Reason'];
  return {
    tone, title: `${decision}: ${said.verdict}`, meaning: reason ? `${meaning} Reason: ${reason}.` : meaning, waits: 0, decision, problem: '',
    advice: decision === 'SUCCESS' ? '' : 'A new try needs a new capture.', next: decision === 'SUCCESS' ? '' : 'anew',
  };
}

const byStatus = status => status === 503 || status === 408 ? 'again' : [405, 413, 415, 431].includes(status) ? 'nothing' : 'anew';
