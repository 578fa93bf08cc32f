// A page's own code: it captures with the Oz Web SDK, whose script the page has loaded, and shows what came of it.
import {verify} from './capsule.js';

const capture = session_token => new Promise((resolve, reject) => {
  OzLiveness.open({
    lang: 'en',
    session_token,
    action: ['video_selfie_blank'],
    on_capture_complete: (action, ozCapsula) => resolve(ozCapsula), // a Blob, to be sent as it is
    on_error: reject,
  });
});

export async function check(show) {
  const {next, said} = await verify(capture, {onProgress: share => show(`${Math.round(share * 100)} %`)})
    .catch(() => ({next: 'later'})); // on_error: the user has closed the SDK, or there is no camera
  show(next === 'done' ? said?.message ?? 'Thank you.' : next === 'never' ? 'This page does not work. Please tell us.' : 'Please try again later.');
}
