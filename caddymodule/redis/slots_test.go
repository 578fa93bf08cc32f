package redis

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/redis/go-redis/v9"

	"github.com/oz-instant/caddy-oz-instant/caddymodule"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/slotstest"
)

// newSlots loads a store of slots that ends with the test, and isn't lost after a second on a machine that stands still.
func newSlots(t testing.TB, url string) *Slots {
	t.Helper()
	ctx, cancel := caddy.NewContext(caddy.Context{Context: context.Background()})
	t.Cleanup(cancel)
	s := &Slots{URL: url}
	if err := s.Provision(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Cleanup() })
	patient(s.conn)
	return s
}

// patient gives calls of a connection that nobody uses yet more time.
func patient(conn *connection) {
	o := conn.UniversalClient.(*redis.Client).Options()
	o.ReadTimeout, o.WriteTimeout = 30*time.Second, 30*time.Second
}

// report is one with limits that most tests have.
func report(gateway string) caddymodule.SlotReport {
	return caddymodule.SlotReport{Gateway: gateway, Joins: true, Life: 60_000, Slots: 2, Queue: 2, Share: 2, Lease: 60_000, Offer: 60_000, Silence: 60_000}
}

func tickets(ids ...int64) (list []caddymodule.SlotTicket) {
	for _, id := range ids {
		list = append(list, caddymodule.SlotTicket{ID: id})
	}
	return list
}

// mustSync reports, and returns the answer.
func mustSync(t *testing.T, s caddymodule.SlotStore, r caddymodule.SlotReport) caddymodule.SlotAnswer {
	t.Helper()
	a, err := s.Sync(t.Context(), "room", r)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(a.Granted)
	slices.Sort(a.Refused)
	return a
}

// summary is what both stores must answer alike. Times differ.
func summary(a caddymodule.SlotAnswer) string {
	return fmt.Sprintf("unknown %t, fresh %t, %d gateways, %d held, %d wait, granted %v, refused %v",
		a.Unknown, a.Fresh, a.Gateways, a.Held, a.Waiting, a.Granted, a.Refused)
}

// begin has all gateways leave and one come that stays, and the room is fresh for so many
// milliseconds: by another one, since the one that stays must not be dead by the next call. It
// returns when that time is over, if it is short.
func begin(t *testing.T, s caddymodule.SlotStore, fresh int64) {
	t.Helper()
	for _, gateway := range []string{"a", "b", "c", "d"} {
		r := report(gateway)
		r.Left = true
		mustSync(t, s, r)
	}
	stays, other := report("d"), report("cautious")
	mustSync(t, s, stays)
	other.Life, other.Cautious = fresh, true
	mustSync(t, s, other)
	other.Left = true
	mustSync(t, s, other)
	for mustSync(t, s, stays).Fresh && fresh < 1000 {
		time.Sleep(time.Millisecond)
	}
}

// Whatever gateways report, the script answers as the store in memory does, with which
// gateways are tested. That one is plain Go.
func TestSlotsAnswerAsTheModel(t *testing.T) {
	s, model := newSlots(t, startServer(t)), &slotstest.Store{Server: slotstest.NewServer()}
	random := rand.New(rand.NewPCG(1, 2))
	some := func(least, most int64) (list []caddymodule.SlotTicket) {
		for range random.IntN(4) {
			list = append(list, caddymodule.SlotTicket{ID: least + random.Int64N(most-least), Age: 1_000_000 * random.Int64N(3)})
		}
		return list
	}
	granted, refused, waited, kinds := 0, 0, 0, make(map[string]bool)
	for i := range 3000 {
		r := report([]string{"a", "b", "c"}[random.IntN(3)])
		r.Lease = 3_000_000
		r.Slots, r.Queue, r.Share = 1+random.IntN(4), random.IntN(5), 1+random.IntN(3)
		switch i % 1000 {
		case 0:
			begin(t, s, 60_000)
			begin(t, model, 60_000)
		case 300:
			begin(t, s, 5)
			begin(t, model, 5)
		}
		r.Joins, r.Cautious = random.IntN(4) == 0, i%1000 < 300 && random.IntN(4) == 0
		r.Whole, r.Left = r.Joins || random.IntN(4) == 0, i%1000 > 300 && random.IntN(50) == 0
		r.Held, r.Waiting, r.New = some(0, 20), some(15, 40), some(35, 60)
		if random.IntN(20) > 0 {
			r.Held = nil
		}
		for _, ticket := range some(-3, 60) {
			r.Over = append(r.Over, ticket.ID)
		}
		got, want := mustSync(t, s, r), mustSync(t, model, r)
		if summary(got) != summary(want) {
			t.Fatalf("call %d, %+v:\n%s, want\n%s", i, r, summary(got), summary(want))
		}
		if i%20 == 0 {
			assertKeys(t, s, kinds)
		}
		granted, refused, waited = granted+len(got.Granted), refused+len(got.Refused), waited+got.Waiting
	}
	if granted == 0 || refused == 0 || waited == 0 {
		t.Errorf("%d granted, %d refused, %d waited: that shows nothing", granted, refused, waited)
	}
	if len(kinds) != 5 {
		t.Errorf("of keys there were %v: that shows nothing", kinds)
	}
}

// assertKeys promises that all keys are on one node of a cluster, and that none stays when all gateways are gone. It
// notes what kinds there are.
func assertKeys(t *testing.T, s *Slots, kinds map[string]bool) {
	t.Helper()
	keys, err := s.conn.Keys(t.Context(), "*").Result()
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range keys {
		name, found := strings.CutPrefix(key, "oz_instant:slots:{room}:")
		kind, _, _ := strings.Cut(name, ":")
		if kinds[kind] = true; !found {
			t.Errorf("key %s is without the room's hash tag", key)
		}
		if life, err := s.conn.TTL(t.Context(), key).Result(); err != nil || life == -1 { // what has ended since is -2
			t.Errorf("key %s stays for ever, %v", key, err)
		}
	}
}

// until reports until the answer is as wanted.
func until(t *testing.T, s caddymodule.SlotStore, r caddymodule.SlotReport, wanted func(caddymodule.SlotAnswer) bool) {
	t.Helper()
	for begun := time.Now(); ; time.Sleep(time.Millisecond) {
		a := mustSync(t, s, r)
		if wanted(a) {
			return
		}
		if time.Since(begun) > 10*time.Second {
			t.Fatalf("still %s", summary(a))
		}
	}
}

// A gateway that says nothing for its life gives all back, and a lease ends that is held for too
// long, whatever its gateway says. The slots go to those that wait.
func TestSlotsComeBack(t *testing.T) {
	s := newSlots(t, startServer(t))
	begin(t, s, 5)
	waits := report("waits")
	waits.New = tickets(1)
	one := func(a caddymodule.SlotAnswer) bool { return slices.Equal(a.Granted, []int64{1}) }

	dead := report("dead")
	dead.New = tickets(1, 2, 3)
	mustSync(t, s, dead)
	if a := mustSync(t, s, waits); a.Gateways != 3 || a.Held != 2 || a.Waiting != 2 || len(a.Granted) > 0 {
		t.Fatalf("beside one that has all slots: %s", summary(a))
	}
	dead.Life = 40 // from its last report
	mustSync(t, s, dead)
	until(t, s, waits, one)
	if a := mustSync(t, s, waits); a.Gateways != 2 || a.Held != 1 || a.Waiting != 0 {
		t.Errorf("after the other died: %s", summary(a))
	}
	if keys, err := s.conn.Keys(t.Context(), "*:dead").Result(); err != nil || len(keys) > 0 {
		t.Errorf("of the other one there still is %v, %v", keys, err)
	}

	long := report("long")
	long.Slots, long.Whole, long.Held = 1, true, tickets(7)
	waits.New, waits.Over, waits.Slots = tickets(2), []int64{1}, 1
	mustSync(t, s, long)
	if a := mustSync(t, s, waits); len(a.Granted) > 0 {
		t.Errorf("beside one with a lease: %s", summary(a))
	}
	long.Lease, long.Held = 40, []caddymodule.SlotTicket{{ID: 8, Age: 10}}
	mustSync(t, s, long)
	waits.Over = nil
	until(t, s, waits, func(a caddymodule.SlotAnswer) bool { return slices.Equal(a.Granted, []int64{2}) })
	long.Held[0].Age = 50
	if a := mustSync(t, s, long); len(a.Granted) > 0 || a.Held != 1 {
		t.Errorf("one that says that it holds a slot for longer than it may: %s", summary(a))
	}
}

// A gateway that died before the clock of Redis was set back is taken for dead all the same.
func TestSlotsAfterTheClockWasSetBack(t *testing.T) {
	s := newSlots(t, startServer(t))
	begin(t, s, 5)
	dead, waits := report("dead"), report("waits")
	dead.New, waits.New = tickets(1, 2), tickets(3)
	mustSync(t, s, dead)
	later := redis.Z{Score: float64(time.Now().Add(time.Hour).UnixMilli()), Member: "dead"}
	if err := s.conn.ZAdd(t.Context(), slotsKeys("room")[0], later).Err(); err != nil {
		t.Fatal(err)
	}
	waits.Life = 40
	until(t, s, waits, func(a caddymodule.SlotAnswer) bool { return slices.Equal(a.Granted, []int64{3}) })
}

// A slot that another gateway's report gave to one that doesn't report goes to the next.
func TestSlotsAreOffered(t *testing.T) {
	s := newSlots(t, startServer(t))
	begin(t, s, 5)
	holds, dead, waits := report("holds"), report("dead"), report("waits")
	holds.New, dead.New, waits.New = tickets(1, 2), tickets(1), tickets(1)
	for _, r := range []caddymodule.SlotReport{holds, dead, waits} {
		mustSync(t, s, r)
	}
	holds.New, holds.Over, holds.Offer = nil, []int64{1}, 50
	if a := mustSync(t, s, holds); a.Held != 2 || a.Waiting != 1 {
		t.Errorf("after a slot was offered: %s", summary(a))
	}
	until(t, s, waits, func(a caddymodule.SlotAnswer) bool { return slices.Equal(a.Granted, []int64{1}) })
	if dead.New = nil; len(mustSync(t, s, dead).Granted) > 0 {
		t.Error("one that lost its offer has the slot all the same")
	}
	silent := report("silent")
	silent.New = tickets(1)
	mustSync(t, s, silent)
	for begun := time.Now(); time.Since(begun) < 60*time.Millisecond; time.Sleep(time.Millisecond) {
		mustSync(t, s, waits)
	}
	holds.Over, holds.Offer, holds.Silence = []int64{2}, 60_000, 50
	if a := mustSync(t, s, holds); a.Held != 1 || a.Waiting != 1 {
		t.Errorf("beside one that is overdue: %s", summary(a))
	}
	silent.New, silent.Left = nil, true
	mustSync(t, s, silent)
	mustSync(t, s, holds)
	dead.New, dead.Waiting, dead.Lease = nil, tickets(1), 50
	if a := mustSync(t, s, dead); !slices.Equal(a.Granted, []int64{1}) {
		t.Errorf("one that reports again: %s", summary(a))
	}
	until(t, s, waits, func(a caddymodule.SlotAnswer) bool { return a.Held == 1 }) // a lease of its own length
}

// Each gateway is told of slots that others' reports gave it, and of nothing else; and once when it
// begins to listen, also after Redis was away.
func TestSlotsAreAnnounced(t *testing.T) {
	s := newSlots(t, startServer(t))
	begin(t, s, 5)
	told := make(chan string, 100)
	ctx, stop := context.WithCancel(t.Context())
	var ended []chan struct{}
	for _, gateway := range []string{"a", "b"} {
		end := make(chan struct{})
		ended = append(ended, end)
		go func() {
			defer close(end)
			s.Listen(ctx, "room", gateway, func() { told <- gateway })
		}()
		if got := <-told; got != gateway {
			t.Errorf("%s was told that it listens now, want %s", got, gateway)
		}
	}
	a, b := report("a"), report("b")
	a.New = tickets(1, 2)
	mustSync(t, s, a)
	b.New = tickets(3)
	mustSync(t, s, b)
	a.New, a.Over = nil, []int64{1}
	mustSync(t, s, a)
	if got := <-told; got != "b" {
		t.Errorf("%s was told, want b", got)
	}
	if err := s.conn.ClientKillByFilter(ctx, "TYPE", "pubsub").Err(); err != nil {
		t.Fatal(err)
	}
	again := []string{<-told, <-told}
	if slices.Sort(again); !slices.Equal(again, []string{"a", "b"}) {
		t.Errorf("after the connection broke %v were told", again)
	}
	stop()
	for _, end := range ended {
		<-end
	}
	if len(told) > 0 {
		t.Errorf("%s was told, too", <-told)
	}
}

// An account with the rights that the error names lacks none: not for a slot, and not for the pings by
// which the client finds out that a connection which only listens has broken. Redis keeps a log of what
// it refuses.
func TestSlotsRights(t *testing.T) {
	url := startServer(t)
	admin := newSlots(t, url)
	rights := strings.Fields(between(explain(replyError("NOPERM")).Error(), "(want ", ")"))
	args := []any{"ACL", "SETUSER", "oz", "on", ">secret", "resetchannels"}
	for _, right := range rights {
		args = append(args, right)
	}
	if err := admin.conn.Do(t.Context(), args...).Err(); err != nil {
		t.Fatal(err)
	}
	s := newSlots(t, strings.Replace(url, "//", "//oz:secret@", 1))
	a := report("a")
	a.New, a.Whole = tickets(1, 2, 3), true
	mustSync(t, s, a)
	sub := s.conn.Subscribe(t.Context(), slotsChannel("room"))
	defer sub.Close()
	if err := sub.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 2 { // that it has subscribed, and the ping
		if _, err := sub.ReceiveTimeout(t.Context(), 10*time.Second); err != nil {
			t.Error(err)
		}
	}
	if log, err := admin.conn.Do(t.Context(), "ACL", "LOG").Slice(); err != nil || len(log) > 0 {
		t.Errorf("%v, %v", log, err)
	}
}

func between(text, before, after string) string {
	_, text, _ = strings.Cut(text, before)
	text, _, _ = strings.Cut(text, after)
	return text
}

// What can't be an answer of the script isn't one.
func TestSlotsAnswersThatAreNone(t *testing.T) {
	number := func(n int64) []any { return []any{int64(0), int64(1), int64(0), n, []any{}, []any{}} }
	for _, reply := range [][]any{
		{int64(1)},
		number(math.MinInt64),
		number(-1),
		number(math.MaxInt64),
		{int64(0), "1", int64(0), int64(0), []any{}, []any{}},
		{int64(0), int64(1), int64(0), int64(0), nil, []any{}},
		{int64(0), int64(1), int64(0), int64(0), []any{}, []any{"x"}},
	} {
		if a, err := readAnswer(reply); err == nil {
			t.Errorf("%v: %+v", reply, a)
		}
	}
	if a, err := readAnswer(number(7)); err != nil || a.Waiting != 7 {
		t.Errorf("%+v, %v", a, err)
	}
}
