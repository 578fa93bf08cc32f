package redis

import (
	"fmt"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/oz-instant/caddy-oz-instant/caddymodule"
)

// benchRoom has gateways with as many tickets in slots and in the queue as a load has.
type benchRoom struct {
	b       *testing.B
	store   *Slots
	reports []caddymodule.SlotReport // one of each gateway
	held    [][]int64
	waits   [][]caddymodule.SlotTicket // what waits from the beginning
	next    int64
}

func newBenchRoom(b *testing.B, gateways, slots, held, waiting int) *benchRoom {
	r := &benchRoom{b: b, store: newSlots(b, startServer(b)), held: make([][]int64, gateways), waits: make([][]caddymodule.SlotTicket, gateways)}
	for i := range gateways {
		report := caddymodule.SlotReport{
			Gateway: fmt.Sprintf("gateway%05d", i), Joins: true, Life: 600_000, Slots: slots, Queue: 1 << 20, Share: slots,
			Lease: 600_000, Offer: 600_000, Silence: 600_000,
		}
		r.reports = append(r.reports, report)
	}
	first := r.reports[0]
	first.Life = 1 // of the fresh room
	r.sync(0, first)
	time.Sleep(10 * time.Millisecond)
	for i := range gateways {
		r.sync(i, r.reports[i])
		r.reports[i].Joins = false
		report := r.reports[i]
		report.New = r.newcomers((held + i) / gateways)
		r.sync(i, report)
	}
	for i, report := range r.reports {
		report.New = r.newcomers(waiting / gateways)
		r.waits[i] = report.New
		r.sync(i, report)
	}
	return r
}

func (r *benchRoom) newcomers(n int) []caddymodule.SlotTicket {
	list := make([]caddymodule.SlotTicket, n)
	for i := range list {
		r.next++
		list[i].ID = r.next
	}
	return list
}

func (r *benchRoom) sync(i int, report caddymodule.SlotReport) caddymodule.SlotAnswer {
	a, err := r.store.Sync(r.b.Context(), "room", report)
	if err != nil {
		r.b.Fatal(err)
	}
	r.held[i] = a.Granted
	return a
}

var cpuSeconds = regexp.MustCompile(`used_cpu_(?:sys|user):([0-9.]+)`)

// spent returns the CPU time of Redis.
func (r *benchRoom) spent() (seconds float64) {
	text, err := r.store.conn.Info(r.b.Context(), "cpu").Result()
	if err != nil {
		r.b.Fatal(err)
	}
	for _, found := range cpuSeconds.FindAllStringSubmatch(text, -1) {
		n, _ := strconv.ParseFloat(found[1], 64) // it is one
		seconds += n
	}
	return seconds
}

// measure reports what a call costs Redis.
func (r *benchRoom) measure(call func(i int)) {
	begun, n := r.spent(), 0
	for r.b.Loop() {
		call(n % len(r.reports))
		n++
	}
	r.b.ReportMetric((r.spent()-begun)/float64(n)*1e6, "redis-µs/op")
}

func BenchmarkSlots(b *testing.B) {
	for _, gateways := range []int{1, 3, 10} {
		b.Run(fmt.Sprintf("nothing/gateways=%d", gateways), func(b *testing.B) {
			r := newBenchRoom(b, gateways, 627, 0, 0)
			r.measure(func(i int) { r.sync(i, r.reports[i]) })
		})
		over := func(r *benchRoom, i int) caddymodule.SlotReport {
			report := r.reports[i]
			if len(r.held[i]) > 0 {
				report.Over = r.held[i][:1]
			}
			return report
		}
		oneForOne := func(r *benchRoom) {
			r.measure(func(i int) {
				report := over(r, i)
				report.New = r.newcomers(1)
				r.sync(i, report)
			})
		}
		b.Run(fmt.Sprintf("free/gateways=%d", gateways), func(b *testing.B) {
			r := newBenchRoom(b, gateways, 627, 500, 0)
			oneForOne(r)
		})
		b.Run(fmt.Sprintf("queue/gateways=%d", gateways), func(b *testing.B) {
			r := newBenchRoom(b, gateways, 500, 500, 3000)
			oneForOne(r)
		})
		b.Run(fmt.Sprintf("whole/gateways=%d", gateways), func(b *testing.B) {
			r := newBenchRoom(b, gateways, 627, 500, 0)
			r.measure(func(i int) {
				report := r.reports[i]
				report.Whole = true
				for _, id := range r.held[i] {
					report.Held = append(report.Held, caddymodule.SlotTicket{ID: id})
				}
				r.sync(i, report)
			})
		})
		b.Run(fmt.Sprintf("wholequeue/gateways=%d", gateways), func(b *testing.B) {
			r := newBenchRoom(b, gateways, 500, 500, 3000)
			r.measure(func(i int) {
				report := r.reports[i]
				report.Whole, report.Waiting = true, r.waits[i]
				for _, id := range r.held[i] {
					report.Held = append(report.Held, caddymodule.SlotTicket{ID: id, Age: 1234})
				}
				r.sync(i, report)
			})
		})
		b.Run(fmt.Sprintf("flood/gateways=%d", gateways), func(b *testing.B) {
			r := newBenchRoom(b, gateways, 500, 500, 0)
			r.measure(func(i int) {
				report := r.reports[i]
				report.Queue = 0
				report.New = r.newcomers(1000)
				r.sync(i, report)
			})
		})
	}
}
