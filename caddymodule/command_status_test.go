package caddymodule

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/diagnose"
)

// A gateway that hangs is asked once, however long it is watched, and again
// after it has answered.
func TestStatusOfAHangingGateway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int64
		hangs := make(chan struct{})
		q := &query{address: "localhost:2019", get: func() statusAnswer {
			calls.Add(1)
			<-hangs
			return statusAnswer{status: diagnose.Status{Ready: true}}
		}}
		for range 100 {
			if a := q.ask(t.Context()); a.err == nil {
				t.Fatalf("it has answered: %v", a)
			}
		}
		if n := calls.Load(); n != 1 {
			t.Errorf("%d calls have no answer", n)
		}
		close(hangs)
		for range 2 {
			if a := q.ask(t.Context()); a.err != nil || !a.status.Ready {
				t.Errorf("%v", a)
			}
		}
		if n := calls.Load(); n != 2 {
			t.Errorf("%d calls", n)
		}
	})
}

// An error has texts of whatever answered: a page of megabytes isn't printed.
func TestAdminErrorIsShort(t *testing.T) {
	page := "caddy responded with error: HTTP 500: " + strings.Repeat("\x1b漢", 1<<20)
	if got := adminError("localhost:2019", errors.New(page)).Error(); len(got) > 1000 || !strings.HasPrefix(got, "caddy responded with error: HTTP 500: 漢漢") || strings.Contains(got, "\x1b") {
		t.Errorf("%d bytes: %.100q", len(got), got)
	}
}
