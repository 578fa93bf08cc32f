package upload

import (
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// One rule says when an upload ends: waiting uses patience up, bytes give it
// back.
func TestProgress(t *testing.T) {
	const all = 2 << 20
	for _, test := range []struct {
		name  string
		sends func(*phone)
		site  caddyhttp.IdleDeadline
		want  error
		after time.Duration
	}{
		{name: "no byte", sends: func(*phone) {}, want: ErrStalled, after: 10 * time.Second},
		{name: "one byte", sends: func(p *phone) { p.send(1) }, want: ErrStalled, after: 10 * time.Second},
		{name: "all but the last byte", sends: func(p *phone) { p.send(all - 1) }, want: ErrStalled, after: 10 * time.Second},
		{name: "a byte a second", sends: func(p *phone) { p.sendEvery(time.Second, all, 1) }, want: ErrStalled, after: 10*time.Second + 10*(time.Second/4096)},
		{name: "3 KB a second", sends: func(p *phone) { p.sendEvery(time.Second, all, 3000) }, want: ErrStalled, after: 34902343750 * time.Nanosecond},
		{name: "at once, then nothing, then a byte a second", sends: func(p *phone) {
			p.send(1 << 20)
			time.Sleep(8 * time.Second)
			p.sendEvery(time.Second, all, 1)
		}, want: ErrStalled, after: 10*time.Second + 2*(time.Second/4096)},
		{name: "gaps of nine seconds", sends: func(p *phone) { p.sendEvery(9*time.Second, 8, all/8) }, after: 72 * time.Second},
		{name: "20 KiB a second", sends: func(p *phone) { p.sendEvery(time.Second, all, 20<<10) }, after: 103 * time.Second},
		{name: "6 KiB a second", sends: func(p *phone) { p.sendEvery(time.Second, all, 6<<10) }, want: ErrTimeout, after: 2 * time.Minute},
		{name: "a site with less patience", sends: func(p *phone) { p.send(1) }, site: caddyhttp.IdleDeadline{Timeout: 3 * time.Second}, want: ErrSiteTimeout, after: 3 * time.Second},
		{name: "a site with more patience", sends: func(p *phone) { p.send(1) }, site: caddyhttp.IdleDeadline{Timeout: time.Minute}, want: ErrStalled, after: 10 * time.Second},
		{name: "the site's read_body", sends: func(p *phone) { p.sendEvery(time.Second, all, 20<<10) }, site: caddyhttp.IdleDeadline{Timeout: time.Minute, HardDeadline: time.Unix(946684800+5, 0)}, want: ErrSiteTimeout, after: 5 * time.Second},
		{name: "the site's own rate", sends: func(p *phone) { p.sendEvery(time.Second, all, 20<<10) }, site: caddyhttp.IdleDeadline{Timeout: 4750 * time.Millisecond, MinRate: 40 << 10}, want: ErrSiteTimeout, after: 8750 * time.Millisecond},
		{name: "the site's own rate, kept", sends: func(p *phone) { p.sendEvery(time.Second, all, 64<<10) }, site: caddyhttp.IdleDeadline{Timeout: 5 * time.Second, MinRate: 40 << 10}, after: 32 * time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPhone(t)
				r := p.request(all)
				if test.site.Timeout > 0 {
					r = withSite(p, r, test.site)
				}
				s := NewStream(p, r, Limits{MaxBytes: 1 << 30, Timeout: 2 * time.Minute})
				l := s.Lifetime(true)
				start := time.Now()
				p.does(func() { test.sends(p) })
				_, err := io.Copy(io.Discard, s)
				if !errors.Is(err, test.want) || (err == nil) != (test.want == nil) || time.Since(start) != test.after {
					t.Errorf("%v after %s, want %v after %s", err, time.Since(start), test.want, test.after)
				}
				synctest.Wait()
				st := s.State()
				if l.Gone() || l.Context().Err() != nil {
					t.Error("a timeout is taken for a client that left")
				}
				if st.Fault != err || st.Unread != (err != nil) {
					t.Errorf("%+v", st)
				}
				l.End()
				s.End()
			})
		})
	}
}

// Time in which nobody reads costs the client nothing.
func TestProgressCountsOnlyReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPhone(t)
		s := p.stream(100)
		p.does(func() { p.sendEvery(0, 100, 1) })
		for range 100 {
			time.Sleep(time.Minute)
			if _, err := s.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		}
		s.End()
	})
}

// The site's own timeouts are in force again for what comes after the upload.
func TestProgressRestoresTheSite(t *testing.T) {
	for name, end := range map[string]func(*Stream){"Rest": func(s *Stream) { s.Rest() }, "End": (*Stream).End} {
		synctest.Test(t, func(t *testing.T) {
			p := newPhone(t)
			r := withSite(p, p.request(100), caddyhttp.IdleDeadline{Timeout: time.Minute, MinRate: 7})
			reader, _ := caddyhttp.IdleTimeoutsFromContext(r.Context())
			s := NewStream(p, r, Limits{})
			p.does(func() { p.sendEvery(3*time.Second, 2, 1) })
			if _, err := io.ReadFull(s, make([]byte, 2)); err != nil {
				t.Fatal(err)
			}
			if reader.Deadline.Timeout >= 10*time.Second || reader.Deadline.MinRate != 0 {
				t.Errorf("%s: while it is read: %+v", name, reader.Deadline)
			}
			end(s)
			if reader.Deadline.Timeout != time.Minute || reader.Deadline.MinRate != 7 {
				t.Errorf("%s: after it: %+v", name, reader.Deadline)
			}
			s.End()
		})
	}
}
