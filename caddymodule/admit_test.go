package caddymodule

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
)

// A capsule that did not come to Oz is either the client's doing, and then
// nothing was decided, or for lack of capacity.
func TestOutcomeOfWhatDidNotComeToOz(t *testing.T) {
	for _, test := range []struct {
		err        error
		busy       refusal
		retryAfter string
	}{
		{&busyError{refusalQueue, 1500 * time.Millisecond}, refusalQueue, "2"},
		{fmt.Errorf("x: %w", &busyError{refusalWait, time.Millisecond}), refusalWait, "1"},
		{&busyError{refusalWait, 0}, refusalWait, ""},
		{fmt.Errorf("x: %w", errNoMemory), refusalMemory, ""},
		{errClientGone, "", ""},
		{errStalled, "", ""},
	} {
		o := outcome{capsuleBytes: 5, unread: true}.ended(test.err)
		if o.busy != test.busy || o.answer.retryAfter != test.retryAfter || o.capsuleBytes != 5 || !o.unread {
			t.Errorf("%v: %+v", test.err, o)
		}
		if test.busy == "" {
			wantOutcome(t, o, "", "", test.err)
			continue
		}
		wantOutcome(t, o, oz.Unavailable, oz.Overloaded, nil)
		if want := "no capacity (" + string(test.busy) + ")"; o.err == nil || o.err.Error() != want {
			t.Errorf("the log says %v, want %s", o.err, want)
		}
	}
}

// busyHandler has one slot, which is taken, and a queue as configured.
func busyHandler(t *testing.T, oz roundTrip, capacity string) (h *Handler, free func()) {
	t.Helper()
	h = newHandler(t, oz, `{"capacity": {"slots": 1, `+capacity+`}}`)
	release, _, err := h.gate.enterSlot(t.Context(), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	return h, release
}

// Who cannot be served is refused before one byte of the capsule was read, and
// without a word to Oz.
func TestNoCapacityNoByteRead(t *testing.T) {
	for name, capacity := range map[string]string{
		"the queue is full": `"queue": 0`, "the wait is too long": `"queue": 1, "wait": "1s"`,
		"the queue is full, with memory": `"queue": 0, "memory": 33554432`,
	} {
		t.Run(name, func(t *testing.T) {
			h, _ := busyHandler(t, neverAsked(t), capacity)
			h.gate.gate.inside = 1 // with memory, those who are being received count
			w := httptest.NewRecorder()
			r := capsuleRequest(w, untouched{t})
			r.ContentLength = 1 << 20
			o := h.decide(r, noApp(t), newCapsule(w, r, h.MaxCapsule))
			wantOutcome(t, o, oz.Unavailable, oz.Overloaded, nil)
			if !o.unread || o.capsuleBytes != 0 || o.busy == "" || o.answer.retryAfter == "" {
				t.Errorf("%+v", o)
			}
			if n := testutil.ToFloat64(h.metrics.queued); n != 0 {
				t.Errorf("%v wait", n)
			}
		})
	}
}

// A capsule that waits for its slot is not read, counts as queued, and its wait
// is told. When it has been served its slot is free again.
func TestCapsuleWaitsForItsSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h *Handler
		h, free := busyHandler(t, func(req *http.Request) (*http.Response, error) {
			if n := testutil.ToFloat64(h.metrics.inFlight); n != 1 {
				t.Errorf("%v in flight", n)
			}
			if busy, _ := h.gate.gate.slots.load(); busy != 1 {
				t.Errorf("%d slots are taken", busy)
			}
			time.Sleep(2 * time.Second)
			return answers(201, success())(req)
		}, `"queue": 1`)
		p := newPhone(t)
		p.does(func() { p.send(10) })
		time.AfterFunc(5*time.Second, func() {
			if n := testutil.ToFloat64(h.metrics.queued); n != 1 {
				t.Errorf("%v wait", n)
			}
			if n := testutil.ToFloat64(h.metrics.inFlight); n != 0 {
				t.Errorf("%v in flight", n)
			}
			free()
		})
		r := p.request(10)
		o := h.decide(r, noApp(t), newCapsule(p, r, h.MaxCapsule))
		wantOutcome(t, o, oz.Success, "", nil)
		if o.queueTime != 5*time.Second || o.uploadTime != 2*time.Second {
			t.Errorf("waited %s, uploaded %s", o.queueTime, o.uploadTime)
		}
		if busy, waiting := h.gate.gate.slots.load(); busy != 0 || waiting != 0 {
			t.Errorf("%d slots are taken, %d wait", busy, waiting)
		}
		for name, n := range map[string]float64{"queued": testutil.ToFloat64(h.metrics.queued), "in flight": testutil.ToFloat64(h.metrics.inFlight)} {
			if n != 0 {
				t.Errorf("%s: %v", name, n)
			}
		}
	})
}

// A client that leaves while it waits is gone, and its place with it.
func TestClientLeavesTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, free := busyHandler(t, neverAsked(t), `"queue": 1`)
		p := newPhone(t)
		time.AfterFunc(time.Second, p.hangUp)
		r := p.request(10)
		o := h.decide(r, noApp(t), newCapsule(p, r, h.MaxCapsule))
		wantOutcome(t, o, "", "", errClientGone)
		if o.queueTime != time.Second || !o.unread {
			t.Errorf("%+v", o)
		}
		if free(); h.gate.gate.slots.busy != 0 || h.gate.gate.slots.waiting.Len() != 0 {
			t.Error("its place is still taken")
		}
	})
}

const withMemory = `"queue": 1, "memory": 33554432`

// With memory a capsule is received before it takes a slot: a slow phone does
// not hold one. Upload and wait are told apart, and all memory is free again.
func TestSlowPhoneHoldsNoSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, free := busyHandler(t, func(req *http.Request) (*http.Response, error) {
			sent, _ := readAll(req)
			if len(sent) != 2*chunkSize || req.ContentLength != 2*chunkSize {
				t.Errorf("%d bytes, Content-Length %d", len(sent), req.ContentLength)
			}
			time.Sleep(3 * time.Second)
			return response(201, success()), nil
		}, withMemory)
		time.AfterFunc(4*time.Second, func() {
			if _, waiting := h.gate.gate.slots.load(); waiting != 0 {
				t.Error("it waits for a slot while it uploads")
			}
		})
		time.AfterFunc(13*time.Second, free)
		p := newPhone(t)
		r := p.request(-1) // it does not say how much it sends
		p.does(func() {
			p.sendEvery(5*time.Second, 2, chunkSize)
			time.Sleep(time.Second)
			_ = p.line.Close()
		})
		o := h.decide(r, noApp(t), newCapsule(p, r, h.MaxCapsule))
		wantOutcome(t, o, oz.Success, "", nil)
		if o.uploadTime != 11*time.Second || o.queueTime != 2*time.Second || o.ozTime != 3*time.Second || o.capsuleBytes != 2*chunkSize {
			t.Errorf("upload %s, queue %s, Oz %s, %d bytes", o.uploadTime, o.queueTime, o.ozTime, o.capsuleBytes)
		}
		h.gate.gate.wantFree(t)
		if h.gate.gate.inside != 0 {
			t.Errorf("%d are inside", h.gate.gate.inside)
		}
	})
}

// A wait for memory and one for a slot are one wait to the client.
func TestWaitsAreOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, free := busyHandler(t, answers(201, success()), `"queue": 2, "wait": "10s", "memory": 33554432`)
		all := h.gate.gate.memory.open(32<<20, time.Hour, func() {})
		var chunks [][]byte
		for range 32 << 20 / chunkSize {
			chunk, err := all.chunk(t.Context(), time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			all.got(chunkSize)
			chunks = append(chunks, chunk)
		}
		all.complete()
		time.AfterFunc(6*time.Second, func() {
			for _, chunk := range chunks {
				all.free(chunk)
			}
		})
		time.AfterFunc(9*time.Second, free)
		w := httptest.NewRecorder()
		r := capsuleRequest(w, strings.NewReader("capsule"))
		o := h.decide(r, noApp(t), newCapsule(w, r, h.MaxCapsule))
		wantOutcome(t, o, oz.Success, "", nil)
		if o.queueTime != 9*time.Second || o.uploadTime != 0 {
			t.Errorf("waited %s, uploaded %s", o.queueTime, o.uploadTime)
		}
		h.gate.gate.wantFree(t)
	})
}

// What ends a capsule that is being received, or was, leaves no memory and no
// place taken, and says how much of it there was.
func TestHeldCapsuleThatIsNotSent(t *testing.T) {
	for _, test := range []struct {
		name   string
		phone  func(*phone)
		fields string
		reason oz.Reason
		client error
		bytes  int64
		unread bool
		takes  time.Duration
	}{
		{"the client leaves", func(p *phone) { p.send(10); p.hangUp() }, "", "", errClientGone, 10, true, 0},
		{"the client is slow", func(p *phone) { p.send(10) }, `, "upload_timeout": "30s"`, "", errUploadTimeout, 10, true, 30 * time.Second},
		{"no slot in time", func(p *phone) { p.send(20) }, "", oz.Overloaded, nil, 20, false, 15 * time.Second},
		{"it leaves while it waits", func(p *phone) { p.send(20); p.hangUp() }, `, "client_gone": "cancel"`, "", errClientGone, 20, false, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHandler(t, neverAsked(t), `{"capacity": {"slots": 1, "queue": 5, "memory": 33554432}`+test.fields+`}`)
				if _, _, err := h.gate.enterSlot(t.Context(), 0); err != nil {
					t.Fatal(err)
				}
				p := newPhone(t)
				p.does(func() { test.phone(p) })
				start := time.Now()
				r := p.request(20)
				o := h.decide(r, noApp(t), newCapsule(p, r, h.MaxCapsule))
				if test.client != nil {
					wantOutcome(t, o, "", "", test.client)
				} else {
					wantOutcome(t, o, oz.Unavailable, test.reason, nil)
				}
				if o.capsuleBytes != test.bytes || o.unread != test.unread || time.Since(start) != test.takes {
					t.Errorf("after %s: %+v", time.Since(start), o)
				}
				h.gate.gate.wantFree(t)
				if h.gate.gate.inside != 0 {
					t.Errorf("%d are inside", h.gate.gate.inside)
				}
			})
		})
	}
}

// A client that has done its part may leave: what it sent is judged.
func TestHeldCapsuleOfAClientThatLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, free := busyHandler(t, answers(201, success()), withMemory)
		p := newPhone(t)
		p.does(func() {
			p.send(20)
			p.hangUp()
		})
		time.AfterFunc(5*time.Second, free)
		r := p.request(20)
		o := h.decide(r, noApp(t), newCapsule(p, r, h.MaxCapsule))
		wantOutcome(t, o, oz.Success, "", nil)
		if !o.clientGone || o.unread {
			t.Errorf("%+v", o)
		}
	})
}

// Without capacity configured everything goes straight to Oz, as a stream: it
// gets the first byte before the last one is there.
func TestWithoutCapacityCapsulesStream(t *testing.T) {
	first := make(chan struct{})
	h := newHandler(t, func(req *http.Request) (*http.Response, error) {
		if _, err := io.ReadFull(req.Body, make([]byte, 1)); err != nil {
			return nil, err
		}
		close(first)
		return answers(201, success())(req)
	}, "")
	p := newPhone(t)
	p.does(func() {
		p.send(1)
		<-first
		p.send(9)
	})
	r := p.request(10)
	o := h.decide(r, noApp(t), newCapsule(p, r, h.MaxCapsule))
	wantOutcome(t, o, oz.Success, "", nil)
	if o.queueTime != 0 {
		t.Errorf("%+v", o)
	}
}

// Phones that are too slow to be done in time keep nobody out: they hold a
// little memory, and no place.
func TestIdlePhonesTakeNoPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHandler(t, answers(201, success()), `{"capacity": {"slots": 3, "memory": 1073741824}}`)
		for range 15 {
			p := newPhone(t)
			p.does(func() { p.sendEvery(time.Second, 1000, 1) })
			r := p.request(1000)
			p.does(func() { h.decide(r, noApp(t), newCapsule(p, r, h.MaxCapsule)) })
		}
		decide := func() outcome {
			w := httptest.NewRecorder()
			r := capsuleRequest(w, strings.NewReader("capsule"))
			return h.decide(r, noApp(t), newCapsule(w, r, h.MaxCapsule))
		}
		time.Sleep(time.Second)
		wantOutcome(t, decide(), oz.Unavailable, oz.Overloaded, nil) // who knows, they may be quick
		time.Sleep(3 * time.Second)
		wantOutcome(t, decide(), oz.Success, "", nil)
	})
}

// A capsule whose last byte came just as its time was up is whole, and its
// client is there, although the read deadline has ended the request's context.
func TestInterruptedAtItsLastByte(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHandler(t, answers(201, success()), `{"client_gone": "cancel", "upload_timeout": "10s", "capacity": {"slots": 1, "memory": 33554432}}`)
		ctx, cancel := context.WithCancel(t.Context())
		w := &interruptedWriter{httptest.NewRecorder(), cancel}
		r := httptest.NewRequest(http.MethodPost, "/verify", struct{ io.Reader }{readFunc(func(p []byte) (int, error) {
			time.Sleep(10 * time.Second)
			synctest.Wait()
			return copy(p, "capsule"), io.EOF
		})})
		r.ContentLength = 7
		r.Header.Set("Content-Type", capsuleMediaType)
		app := new(testApp)
		if err := h.ServeHTTP(w, fromClient(w, r.WithContext(ctx)), app); err != nil || app.calls != 1 {
			t.Errorf("%d, %v, %d calls", w.Code, err, app.calls)
		}
	})
}

// interruptedWriter ends the request's context by a read deadline, as net/http does.
type interruptedWriter struct {
	*httptest.ResponseRecorder
	end func()
}

func (w *interruptedWriter) SetReadDeadline(time.Time) error {
	w.end()
	return nil
}

type readFunc func([]byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }
