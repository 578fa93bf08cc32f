package sandbox

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"sync"
	"time"
)

// Error codes about access tokens: the vendor's numbers.
const (
	codeNotProvided = 6
	codeInvalid     = 7
	codeExpired     = 8
	codeForbidden   = 9
)

// sessions are the log-ins that Options.Accounts allows. Of a token only the digest is kept.
type sessions struct {
	mu     sync.Mutex
	all    map[string]*session // by the digest of the access token
	tidyAt int                 // clean up when there are this many
}

type session struct {
	access, expire string // digests
	email          string
	ends           time.Time
	forbidden      bool
	before         *session // what it was refreshed from; nil once this one was used
}

// pair is what a log-in gives: the only place where the tokens themselves are.
type pair struct {
	access, expire string
	ends           time.Time
}

// open begins a session.
func (ss *sessions) open(email string, now time.Time, life time.Duration) pair {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	return ss.add(&session{email: email, ends: now.Add(life)}, now)
}

func (ss *sessions) add(s *session, now time.Time) pair {
	p := pair{newAccessToken(), newAccessToken(), s.ends}
	s.access, s.expire = Digest([]byte(p.access)), Digest([]byte(p.expire))
	if ss.all == nil {
		ss.all, ss.tidyAt = map[string]*session{}, 1024
	}
	if len(ss.all) >= ss.tidyAt {
		for digest, old := range ss.all {
			if !now.Before(old.ends) {
				delete(ss.all, digest)
			}
		}
		ss.tidyAt = max(1024, 2*len(ss.all))
	}
	ss.all[s.access] = s
	return p
}

// use is what every call with an access token does. It returns the error code, or 0 for a token that is good: then the
// session lasts until ends, if that is later, and what it was refreshed from dies.
func (ss *sessions) use(access string, now, ends time.Time) (email string, code int) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	s := ss.all[access]
	switch {
	case s == nil:
		return "", codeInvalid
	case !now.Before(s.ends):
		return "", codeExpired
	case s.forbidden:
		return "", codeForbidden
	}
	for old := s.before; old != nil; old = old.before {
		delete(ss.all, old.access)
	}
	s.before = nil
	if s.ends.Before(ends) {
		s.ends = ends
	}
	return s.email, 0
}

// refresh begins a session that will take the place of the one with this expire_token. Without one, ok is false; when it is
// somebody else's, owned is.
func (ss *sessions) refresh(email, expire string, now time.Time, life time.Duration) (p pair, ok, owned bool) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	for _, s := range ss.all {
		switch {
		case s.expire != expire || !now.Before(s.ends):
			continue
		case s.email != email:
			return p, true, false
		}
		return ss.add(&session{email: email, ends: now.Add(life), before: s}, now), true, true
	}
	return p, false, false
}

// change does something to every session there is.
func (ss *sessions) change(f func(*session)) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	for _, s := range ss.all {
		f(s)
	}
}

// ExpireSessions lets every access token that was given out reach its end: from now on it is refused with 401 and code 8.
// Options.AccessToken is no session and stays.
func (s *Sandbox) ExpireSessions() {
	s.sessions.change(func(old *session) { old.ends = time.Time{} })
}

// RevokeSessions forgets every access token that was given out: from now on it is refused with 401 and code 7, and its
// expire_token with "Session not found".
func (s *Sandbox) RevokeSessions() {
	s.sessions.change(func(old *session) { delete(s.sessions.all, old.access) })
}

// ForbidSessions takes every access token that was given out the right to anything: from now on it is refused with 403 and
// code 9.
func (s *Sandbox) ForbidSessions() {
	s.sessions.change(func(old *session) { old.forbidden = true })
}

// newAccessToken makes a token that looks like the vendor's: 128 hexadecimal digits.
func newAccessToken() string {
	var b [64]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// Digest is how receipts and logs name bytes: their SHA-256, in hex.
func Digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
