package diagnose

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode"
)

// How many requests and capsules learning takes at most.
const (
	learningRequests  = 1 + 2*2 + learningSuccesses + learningDeclines + 1
	learningSuccesses = 3 // two in the beginning, one in the end
	learningDeclines  = 2
)

// reply is what of an answer can tell one from another.
type reply struct {
	status    int
	mediaType string
	location  string // without query, and with # for parts that have digits in them
	words     map[string]bool
}

func newReply(resp *http.Response, body []byte) reply {
	a := reply{status: resp.StatusCode, words: words(string(body))}
	a.mediaType, _, _ = strings.Cut(strings.ToLower(resp.Header.Get("Content-Type")), ";")
	a.mediaType = strings.TrimSpace(a.mediaType)
	if u, err := url.Parse(resp.Header.Get("Location")); err == nil {
		parts := strings.Split(u.Path, "/")
		for i, part := range parts {
			if strings.ContainsAny(part, "0123456789") {
				parts[i] = "#"
			}
		}
		a.location = strings.Join(parts, "/")
	}
	for _, cookie := range resp.Cookies() {
		a.words["cookie "+cookie.Name] = true
	}
	return a
}

// words returns the words of a text, less those with digits: these are ids and times, and differ each time.
func words(text string) map[string]bool {
	found := map[string]bool{}
	for _, word := range strings.FieldsFunc(text, func(c rune) bool { return !unicode.IsLetter(c) && !unicode.IsDigit(c) }) {
		if len(word) > 2 && !strings.ContainsFunc(word, unicode.IsDigit) {
			found[strings.ToLower(word)] = true
		}
	}
	return found
}

// alike reports whether two answers have everything but their words in common.
func (a reply) alike(b reply) bool {
	return a.status == b.status && a.mediaType == b.mediaType && a.location == b.location
}

// learned holds the answers to requests without anything forged.
type learned struct {
	success []reply // one or more, all alike
	others  []reply

	byKind bool            // no other answer is like a success
	byWord map[string]bool // the words that only successes have; nil if there is only one of them
}

// conclude says how a success is told from everything else. Its error says that it can't be.
func (l *learned) conclude() (string, error) {
	first := l.success[0]
	for _, s := range l.success {
		if !s.alike(first) {
			return "", fmt.Errorf("a SUCCESS is answered %s one time and %s another, so it can't be told what only a SUCCESS gets", first, s)
		}
	}
	l.byKind = !slices.ContainsFunc(l.others, first.alike)
	if len(l.success) > 1 {
		l.byWord = l.ownWords()
	}
	switch {
	case l.byKind:
		return first.String(), nil
	case len(l.byWord) > 0:
		return "the words " + strings.Join(someOf(l.byWord, 5), ", "), nil
	case len(l.success) == 1:
		return "", fmt.Errorf("a SUCCESS is answered %s like what isn't one; give a second capsule, so that words in the answer can tell", first)
	}
	return "", fmt.Errorf("a SUCCESS is answered %s and in the same words as what isn't one: they can't be told apart", first)
}

// ownWords returns the words that all successes have and nothing else has. Random words drop out: the next answer has others.
func (l *learned) ownWords() map[string]bool {
	own := maps.Clone(l.success[0].words)
	for _, s := range l.success {
		maps.DeleteFunc(own, func(word string, _ bool) bool { return !s.words[word] })
	}
	for _, o := range l.others {
		maps.DeleteFunc(own, func(word string, _ bool) bool { return o.words[word] })
	}
	return own
}

// isSuccess reports whether only a success gets such an answer. Words of the request itself don't count, since many answers repeat
// them; neither does a status that a harmless request gets, too.
func (l *learned) isSuccess(got reply, said string, control *reply) (is, known bool) {
	if !got.alike(l.success[0]) {
		return false, true
	}
	if l.byKind && (control == nil || !control.alike(got)) {
		return true, true
	}
	own := maps.Clone(l.byWord)
	asked := words(said)
	maps.DeleteFunc(own, func(word string, _ bool) bool { return asked[word] })
	for word := range own {
		if got.words[word] {
			return true, true
		}
	}
	return false, len(own) > 0
}

func (a reply) String() string {
	text := fmt.Sprint(a.status)
	if a.mediaType != "" {
		text += " " + a.mediaType
	}
	if a.location != "" {
		text += " to " + a.location
	}
	return text
}

func someOf(set map[string]bool, n int) []string {
	list := slices.Sorted(maps.Keys(set))
	return list[:min(n, len(list))]
}

// learn collects the answers to compare with, each twice where there are enough capsules.
func (a *attack) learn(ctx context.Context) error {
	if err := a.spend(ctx, 1); err != nil {
		return err
	}
	a.h2 = a.speaksH2(ctx)
	for _, s := range []probe{{request: a.get()}, {request: a.garbage()}} {
		for range 2 {
			got, err := a.ask(ctx, s)
			switch {
			case err != nil:
				return fmt.Errorf("%s: %w", s, err)
			case got.status == 0:
				return fmt.Errorf("%s: no answer", s)
			case busy(got.status):
				return fmt.Errorf("%s: answered %d", s, got.status)
			}
			a.learned.others = append(a.learned.others, got)
		}
	}
	for range learningDeclines {
		got, _, err := a.submit(ctx, declined)
		if errors.Is(err, errNoCapsule) {
			break
		} else if err != nil {
			return fmt.Errorf("a DECLINED capsule: %w", err)
		}
		a.learned.others = append(a.learned.others, got)
	}
	return a.learnSuccess(ctx)
}

func (a *attack) learnSuccess(ctx context.Context) error {
	for i := range 2 {
		if i == 1 && a.opts.Capsules.left(genuine) < 2 && a.learned.byKind {
			break // the rows need it more
		}
		got, capsule, err := a.submit(ctx, genuine)
		if i > 0 && errors.Is(err, errNoCapsule) {
			break
		} else if err != nil {
			return fmt.Errorf("a genuine capsule: %w", err)
		}
		a.spent = capsule
		a.learned.success = append(a.learned.success, got)
		if a.report.Told, err = a.learned.conclude(); err != nil && i > 0 {
			return err
		}
	}
	told, err := a.learned.conclude()
	a.report.Told = told
	return err
}

// submit posts a capsule as a client does.
func (a *attack) submit(ctx context.Context, kind need) (reply, []byte, error) {
	s := probe{request: a.capsule(), needs: kind}
	if err := a.load(ctx, &s); err != nil {
		return reply{}, nil, err
	}
	got, err := a.ask(ctx, s)
	switch {
	case err == nil && got.status == 0:
		err = errors.New("no answer")
	case err == nil && got.status >= http.StatusInternalServerError:
		err = fmt.Errorf("answered %d", got.status)
	}
	return got, s.request.body, err
}

// relearn checks that the site still answers as it did: one that has shut the attacker out would seem to hold.
func (a *attack) relearn(ctx context.Context) error {
	got, err := a.ask(ctx, probe{request: a.get()})
	switch {
	case err != nil:
		return fmt.Errorf("asking again in the end: %w", err)
	case !got.alike(a.learned.others[0]) && !got.alike(a.learned.others[1]):
		return fmt.Errorf("in the end an undecided request is answered %s, and in the beginning it was %s: the site has changed, or shuts this client out",
			got, a.learned.others[0])
	}
	got, _, err = a.submit(ctx, genuine)
	switch {
	case errors.Is(err, errNoCapsule):
		return nil
	case err != nil:
		return fmt.Errorf("a genuine capsule in the end: %w", err)
	case !got.alike(a.learned.success[0]):
		return fmt.Errorf("in the end a genuine SUCCESS is answered %s, and in the beginning it was %s", got, a.learned.success[0])
	}
	return nil
}
