// Package slotstest has a store of slots in memory, for tests: of gateways that
// share slots, and of the script in Redis, which must answer as this one does.
package slotstest

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/upload"
)

// Server keeps rooms. It can be restarted, and then has forgotten all.
type Server struct {
	mu        sync.Mutex
	rooms     map[string]*room
	listeners map[*listener]bool
}

type listener struct {
	room, gateway string
	granted       func()
}

type room struct {
	gateways map[string]time.Time // when each is taken for dead
	fresh    time.Time            // until then
	leases   []*ticket
	queue    []*ticket // in order of arrival
}

type ticket struct {
	gateway string
	id      int64
	came    time.Time
	ends    time.Time // of a lease
	offer   bool      // the gateway hasn't reported since
}

// NewServer returns a server without rooms.
func NewServer() *Server {
	return &Server{rooms: make(map[string]*room), listeners: make(map[*listener]bool)}
}

// Restart has the server forget all.
func (s *Server) Restart() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.rooms)
}

// Store is one gateway's connection to a server.
type Store struct {
	Server *Server
	Down   atomic.Bool // calls fail
	Deaf   atomic.Bool // calls have their effect, and their answers are lost
	Mute   atomic.Bool // grants aren't announced
}

// ErrDown is the error of a Store that is down.
var ErrDown = errors.New("the store of this test is down")

// Sync implements upload.SlotStore.
func (s *Store) Sync(ctx context.Context, name string, r upload.SlotReport) (upload.SlotAnswer, error) {
	if s.Down.Load() || ctx.Err() != nil {
		return upload.SlotAnswer{}, ErrDown
	}
	a, told := s.Server.sync(name, r)
	for _, l := range told {
		go l.granted()
	}
	if s.Deaf.Load() {
		return upload.SlotAnswer{}, ErrDown
	}
	return a, nil
}

// Listen implements upload.SlotStore.
func (s *Store) Listen(ctx context.Context, name, gateway string, granted func()) {
	l := &listener{name, gateway, func() {
		if !s.Mute.Load() && !s.Down.Load() {
			granted()
		}
	}}
	s.Server.mu.Lock()
	s.Server.listeners[l] = true
	s.Server.mu.Unlock()
	<-ctx.Done()
	s.Server.mu.Lock()
	delete(s.Server.listeners, l)
	s.Server.mu.Unlock()
}

func (s *Server) sync(name string, r upload.SlotReport) (a upload.SlotAnswer, told []*listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rooms[name] == nil {
		s.rooms[name] = &room{gateways: make(map[string]time.Time)}
	}
	now, m := time.Now(), s.rooms[name]
	m.expire(now)
	if _, known := m.gateways[r.Gateway]; !known && !r.Joins && !r.Left {
		return upload.SlotAnswer{Unknown: true}, nil
	}
	if r.Left {
		r.Held, r.Waiting, r.New = nil, nil, nil
	}
	m.note(now, r)
	granted := m.grant(now, r)
	a = m.newcomers(now, r)
	for l := range s.listeners {
		if l.room == name && l.gateway != r.Gateway && granted[l.gateway] {
			told = append(told, l)
		}
	}
	return a, told
}

func (m *room) expire(now time.Time) {
	for gateway, ends := range m.gateways {
		if !ends.After(now) {
			delete(m.gateways, gateway)
			m.forget(func(t *ticket) bool { return t.gateway == gateway })
		}
	}
	m.leases = slices.DeleteFunc(m.leases, func(t *ticket) bool { return !t.ends.After(now) })
}

func (m *room) forget(which func(*ticket) bool) {
	m.leases, m.queue = slices.DeleteFunc(m.leases, which), slices.DeleteFunc(m.queue, which)
}

// note takes over what a gateway reports.
func (m *room) note(now time.Time, r upload.SlotReport) {
	mine := func(t *ticket) bool { return t.gateway == r.Gateway }
	if r.Left {
		delete(m.gateways, r.Gateway)
		m.forget(mine)
	} else {
		if len(m.gateways) == 0 || r.Joins && r.Cautious {
			m.fresh = now.Add(ms(r.Life))
		}
		m.gateways[r.Gateway] = now.Add(ms(r.Life))
	}
	if r.Whole {
		all := slices.Concat(r.Held, r.Waiting, r.New)
		m.forget(func(t *ticket) bool {
			return mine(t) && !slices.ContainsFunc(all, func(o upload.SlotTicket) bool { return o.ID == t.id })
		})
	}
	for _, t := range m.leases {
		if mine(t) && t.offer {
			t.offer, t.ends = false, now.Add(ms(r.Lease))
		}
	}
	is := func(id int64) func(*ticket) bool { return func(t *ticket) bool { return mine(t) && t.id == id } }
	for _, t := range r.Held {
		m.forget(is(t.ID))
		if t.Age < r.Lease {
			m.leases = append(m.leases, &ticket{gateway: r.Gateway, id: t.ID, ends: now.Add(ms(r.Lease - t.Age))})
		}
	}
	for _, id := range r.Over {
		m.forget(is(id))
	}
	for _, t := range r.Waiting {
		if !m.knows(is(t.ID)) {
			m.wait(now, r.Gateway, t)
		}
	}
}

func (m *room) knows(which func(*ticket) bool) bool {
	return slices.ContainsFunc(m.leases, which) || slices.ContainsFunc(m.queue, which)
}

func (m *room) wait(now time.Time, gateway string, t upload.SlotTicket) {
	w := &ticket{gateway: gateway, id: t.ID, came: now.Add(-ms(t.Age))}
	i := slices.IndexFunc(m.queue, func(o *ticket) bool { return o.came.After(w.came) })
	if i < 0 {
		i = len(m.queue)
	}
	m.queue = slices.Insert(m.queue, i, w)
}

func (m *room) isFree(now time.Time, r upload.SlotReport) bool {
	return len(m.leases) < r.Slots && (!now.Before(m.fresh) || m.held(r.Gateway) < r.Share)
}

func (m *room) held(gateway string) (n int) {
	for _, t := range m.leases {
		if t.gateway == gateway {
			n++
		}
	}
	return n
}

// grant gives free slots to those that wait, and returns whose they are.
func (m *room) grant(now time.Time, r upload.SlotReport) (granted map[string]bool) {
	granted = make(map[string]bool)
	for _, t := range slices.Clone(m.queue) {
		if !m.isFree(now, r) {
			break
		}
		heard := m.gateways[t.gateway].Add(-ms(r.Life)) // by the one that reports, lives are alike
		if now.Before(m.fresh) && t.gateway != r.Gateway || now.Sub(heard) > ms(r.Silence) {
			continue
		}
		granted[t.gateway] = true
		m.queue = slices.DeleteFunc(m.queue, func(o *ticket) bool { return o == t })
		t.ends = now.Add(ms(r.Lease))
		if t.offer = t.gateway != r.Gateway; t.offer {
			t.ends = now.Add(ms(r.Offer))
		}
		m.leases = append(m.leases, t)
	}
	return granted
}

// newcomers takes those in that are new, and makes the answer.
func (m *room) newcomers(now time.Time, r upload.SlotReport) (a upload.SlotAnswer) {
	for _, t := range r.New {
		known := m.knows(func(o *ticket) bool { return o.gateway == r.Gateway && o.id == t.ID })
		switch {
		case known:
		case m.isFree(now, r): // nobody waits for it
			m.leases = append(m.leases, &ticket{gateway: r.Gateway, id: t.ID, ends: now.Add(ms(r.Lease))})
		case len(m.queue) < r.Queue:
			m.wait(now, r.Gateway, t)
		default:
			a.Refused = append(a.Refused, t.ID)
		}
	}
	a.Fresh, a.Gateways, a.Held, a.Waiting = now.Before(m.fresh), len(m.gateways), len(m.leases), len(m.queue)
	for _, t := range m.leases {
		if t.gateway == r.Gateway {
			a.Granted = append(a.Granted, t.id)
		}
	}
	return a
}

func ms(n int64) time.Duration { return time.Duration(n) * time.Millisecond }
