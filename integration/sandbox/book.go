package sandbox

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// Receipt is what the sandbox saw of one request.
type Receipt struct {
	Route            string // which call: OnFolders, OnBiometry, OnToken, OnAuth, OnRefresh or another word
	Method           string
	Path             string // as sent, escapes and all
	RequestURI       string
	Host             string
	Proto            string
	RemoteAddr       string // tells connections apart
	Header           http.Header
	Trailer          http.Header // what came after the body
	TransferEncoding []string
	ContentLength    int64 // -1: not given, as in a chunked body

	Digest   string // SHA-256 of the body's bytes as received, in hex; empty while the body is coming in
	Size     int64  // how many bytes of the body came
	Complete bool   // the body was read to its end

	Parts []Part // of a multipart body, once it is in

	TokenDigest string // SHA-256 of the access token it came with, in hex; empty: none
	GrantDigest string // the same of the access token that it was given

	FolderID   string // of the folder that was answered
	AnswerSize int    // of the answer's body as it was made, in bytes, whatever came of it on the wire

	Status   int  // what was answered; 0: nothing (yet)
	Code     int  // the error_code in the answer, if there is one
	Finished bool // nothing more will happen to this request

	Start, End time.Time // by the real clock, not Options.Clock

	forgotten bool // before its end, which counts for nothing
}

// Stats are counters, for waiting and for measuring.
type Stats struct {
	Received int   // POSTs of capsules that began
	Finished int   // POSTs of capsules that ended, one way or another
	Tokens   int   // session tokens handed out by HTTP
	Open     int   // POSTs of capsules going on now
	PeakOpen int   // most at any one time
	Busy     int   // places taken, of Options.Parallel: by capsules and by images to match
	PeakBusy int   // most at any one time
	Waiting  int   // POSTs waiting for a place
	Refused  int   // POSTs answered 503 because there was no place
	Bytes    int64 // of capsules, received

	Matches         int // POSTs of images to match that began
	MatchesFinished int // POSTs of images to match that ended, one way or another

	LoginTries   int // POSTs to auth that began
	Logins       int // access tokens given out for credentials
	RefreshTries int // POSTs to refresh that began
	Refreshes    int // access tokens given out for an expire_token
}

// begin counts a request that has begun.
func (st *Stats) begin(rec *Receipt) {
	if rec.Method != http.MethodPost {
		return
	}
	switch rec.Route {
	case OnFolders:
		st.Received++
		st.Open++
		st.PeakOpen = max(st.PeakOpen, st.Open)
	case OnBiometry:
		st.Matches++
	case OnAuth:
		st.LoginTries++
	case OnRefresh:
		st.RefreshTries++
	}
}

// end counts one that has ended.
func (st *Stats) end(rec *Receipt) {
	if rec.isCapsule() {
		st.Open--
	}
	switch {
	case rec.forgotten:
	case rec.isCapsule():
		st.Finished++
	case rec.Route == OnBiometry:
		st.MatchesFinished++
	}
}

// book keeps receipts and counters, and wakes up whoever waits for them.
type book struct {
	keep int

	mu       sync.Mutex
	receipts []*Receipt
	stats    Stats
	change   chan struct{} // closed at the next change; nil while nobody waits
}

func newBook(keep int) *book { return &book{keep: keep} }

// open begins a receipt.
func (b *book) open(r *http.Request, route string) *Receipt {
	rec := &Receipt{
		Method: r.Method, Path: r.URL.EscapedPath(), RequestURI: r.RequestURI, Host: r.Host, Proto: r.Proto,
		RemoteAddr: r.RemoteAddr, Header: r.Header.Clone(), TransferEncoding: slices.Clone(r.TransferEncoding),
		ContentLength: r.ContentLength, Start: time.Now(), Route: route,
	}
	if token := r.Header.Get(accessTokenHeader); token != "" {
		rec.TokenDigest = Digest([]byte(token))
	}
	b.update(func(st *Stats) {
		if len(b.receipts) >= b.keep {
			b.receipts = slices.Delete(b.receipts, 0, len(b.receipts)-b.keep+1)
		}
		b.receipts = append(b.receipts, rec)
		st.begin(rec)
	})
	return rec
}

func (rec *Receipt) isCapsule() bool {
	return rec.Route == OnFolders && rec.Method == http.MethodPost
}

// update changes receipts or counters under the lock.
func (b *book) update(f func(st *Stats)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f(&b.stats)
	if b.change != nil {
		close(b.change)
		b.change = nil
	}
}

// broadcast is update for what the slots count.
func (b *book) broadcast(busy, waiting int) {
	b.update(func(st *Stats) {
		st.Busy, st.Waiting = busy, waiting
		st.PeakBusy = max(st.PeakBusy, busy)
	})
}

// Received returns a receipt for each POST of a capsule, in the order in which they came, those still going on included.
func (s *Sandbox) Received() []Receipt {
	return slices.DeleteFunc(s.Requests(), func(rec Receipt) bool { return !rec.isCapsule() })
}

// RequestsOn returns a receipt for every request of one call, such as OnBiometry, in the same order.
func (s *Sandbox) RequestsOn(route string) []Receipt {
	return slices.DeleteFunc(s.Requests(), func(rec Receipt) bool { return rec.Route != route })
}

// AnswerSize returns how many bytes the answer with a folder had, if it is remembered.
func (s *Sandbox) AnswerSize(folderID string) (bytes int64, ok bool) {
	s.book.mu.Lock()
	defer s.book.mu.Unlock()
	for _, rec := range slices.Backward(s.book.receipts) {
		if folderID != "" && rec.FolderID == folderID {
			return int64(rec.AnswerSize), true
		}
	}
	return 0, false
}

// Requests returns a receipt for every request, whatever it was.
func (s *Sandbox) Requests() []Receipt {
	s.book.mu.Lock()
	defer s.book.mu.Unlock()
	out := make([]Receipt, len(s.book.receipts))
	for i, rec := range s.book.receipts {
		out[i] = *rec
	}
	return out
}

// Forget throws receipts and counters away, those of requests without an answer excepted. One that has been answered may need a moment
// to its end, and its client may be gone by then; until it comes, it is Open.
func (s *Sandbox) Forget() {
	s.book.update(func(st *Stats) {
		s.book.receipts = slices.DeleteFunc(s.book.receipts, func(rec *Receipt) bool {
			rec.forgotten = rec.Finished || rec.Status != 0
			return rec.forgotten
		})
		received := 0
		for _, rec := range s.book.receipts {
			if rec.isCapsule() {
				received++
			}
		}
		*st = Stats{Received: received, Open: st.Open, PeakOpen: st.Open, Busy: st.Busy, PeakBusy: st.Busy, Waiting: st.Waiting}
	})
}

// Stats returns the counters.
func (s *Sandbox) Stats() Stats {
	s.book.mu.Lock()
	defer s.book.mu.Unlock()
	return s.book.stats
}

// Await returns as soon as the counters satisfy ok, or with the context's error.
func (s *Sandbox) Await(ctx context.Context, ok func(Stats) bool) error {
	for {
		stats, change := s.book.watch()
		if ok(stats) {
			return nil
		}
		select {
		case <-change:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// watch returns the counters and a channel that is closed when they have changed.
func (b *book) watch() (Stats, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.change == nil {
		b.change = make(chan struct{})
	}
	return b.stats, b.change
}

// tidyTrailer makes an absent trailer nil, announced names without a value included.
func tidyTrailer(h http.Header) http.Header {
	h = h.Clone()
	for name, values := range h {
		if strings.Join(values, "") == "" {
			delete(h, name)
		}
	}
	if len(h) == 0 {
		return nil
	}
	return h
}
