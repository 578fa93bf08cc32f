package diagnose

import (
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// small is a demand whose sizes can be had by hand: 60 a minute, a capsule of a
// MiB, 2 s, 2 at once.
func small() Demand {
	return Demand{
		PerMinute: 60, Capsule: 1 << 20, Answer: 400_000, Upload: 4 * time.Second, Wait: 10 * time.Second, Idle: time.Minute,
		Analysis: 2 * time.Second, Variation: 1, PerInstance: 2, Busy: 0.8, P95: time.Minute, Cores: 1, Link: 1e9, Spare: 1,
	}
}

func near(t *testing.T, name string, got, want, tolerance float64) {
	t.Helper()
	if math.Abs(got-want) > tolerance {
		t.Errorf("%s: got %v, want %v", name, got, want)
	}
}

// By hand: 1/s × 2 s is 2 at once; at most 80 % busy are 3 slots, so 2 instances
// and 4 slots, half busy.
func TestSizeByHand(t *testing.T) {
	s := Size(small())
	near(t, "rate", s.Rate, 1, 0)
	near(t, "load", s.Load, 2, 0)
	near(t, "instances", float64(s.Instances), 2, 0)
	near(t, "slots", float64(s.Slots), 4, 0)
	near(t, "busy", s.Busy, 0.5, 0)
	near(t, "refused", s.Refused, 0, 0)
	near(t, "waiting", float64(s.Waiting), 20, 0)           // 4 × 10 s ÷ 2 s
	near(t, "uploads", s.Uploads, 4, 0)                     // 1/s × 4 s
	near(t, "queue", float64(s.Queue), 4+3*2+20, 0)         // and three times √4
	near(t, "drain", s.Drain, 20, 0)                        // 4 slots do 2/s, of which 1/s comes
	near(t, "gateways", float64(s.Gateways), 1, 0)          // 8 Mbit/s
	near(t, "memory", float64(s.Memory>>20), 128, 0)        // (4 + 30) MiB: the least
	near(t, "from clients", s.FromClients, 1.05*(1<<20), 1) // and 5 % on the wire
	near(t, "from Oz", s.FromOz, 1.05*400_000, 1)           //
	near(t, "idle", s.Idle, 60, 0)                          // 1/s × 1 min
	near(t, "tokens", s.TokenWithin, 16, 0)                 // 16 at once, 1/s
	near(t, "claims", s.RedisBytes, 900*redisPerClaim, 0)   // 1/s × 15 min
	near(t, "Redis, shared", s.RedisShared, 2.5+2, 0)       // and one of each gateway
	near(t, "Redis, cores", s.RedisCPUs, (2*120+4.5*(200+2*6+2*0.2))/1e6, 1e-9)
	near(t, "Redis within", s.RedisWithin, 1, 0) // then calls have failed
	near(t, "lost", s.LostCapsules, (4+s.Waits.Mean+2)/2, 0.001)
	near(t, "one gateway less", s.BusyLess, 1, 0) // the other has 2 of the 4 slots
	near(t, "per Oz", s.PerOz, 2.0/3, 0.001)      // over 3 instances
	near(t, "per Oz, one less", s.PerOzLess, 2, 0)
	near(t, "held", s.Held, (1<<20)*(2+s.Waits.Mean), 1) // half of 4 s of uploading
}

// Three gateways at 10,000 a minute of 2 MiB: 2.94 Gbit/s in, and 0.56 of answers,
// need 6 links of 1 Gbit/s, of which 0.7 are used.
func TestSizeByLinks(t *testing.T) {
	d := small()
	d.PerMinute, d.Capsule, d.Cores = 10_000, 2<<20, 64
	s := Size(d)
	near(t, "from clients", s.FromClients*8/1e9, 2.936, 0.001)
	near(t, "from Oz", s.FromOz*8/1e9, 0.56, 0.001)
	near(t, "gateways", float64(s.Gateways), 5, 0) // 3.496 ÷ 0.7 = 4.99
	d.Link = 10e9
	near(t, "gateways with 10 Gbit/s", float64(Size(d).Gateways), 1, 0)
	near(t, "Redis within", Size(d).RedisWithin, 0.3, 1e-9) // 100 connections for 333 calls a second
	d.Cores = 1
	s = Size(d)
	near(t, "cores", s.CPUs, 1e4/60*(s.CPU+s.CPURedis), 0.001)
	near(t, "gateways of one core", float64(s.Gateways), math.Ceil(s.CPUs*2), 0)
}

// Erlang's C as it stands in tables.
func TestErlangC(t *testing.T) {
	for _, c := range []struct {
		slots      int
		load, want float64
	}{
		{1, 0.5, 0.5}, {2, 1, 1.0 / 3}, {3, 2, 4.0 / 9}, {10, 8, 0.4092}, {5, 4, 0.5541}, {1000, 900, 0.0003},
	} {
		near(t, "C", erlangC(c.slots, c.load), c.want, 0.0003)
	}
}

// One slot, half busy, of one second: the mean wait is a second, and a constant
// duration halves it.
func TestWaitsByHand(t *testing.T) {
	d := Demand{Analysis: time.Second, Variation: 1, Wait: 15 * time.Second}
	w := waits(1, 0.5, d)
	near(t, "share", w.Share, 0.5, 0)
	near(t, "mean", w.Mean, 1, 1e-9)
	near(t, "median", w.P50, 0, 0) // half don't wait
	near(t, "95 %", w.P95, 2*math.Log(10), 1e-9)
	d.Variation = 0
	near(t, "mean of constant ones", waits(1, 0.5, d).Mean, 0.5, 1e-9)
	if w := waits(1, 1, d); w.P50 != 15 || w.Share != 1 {
		t.Errorf("more than the slots can serve: %+v", w)
	}
}

// The formula keeps to what a queue does. It is exact for exponential durations.
// For constant ones it is an approximation, which may be a fifth off.
func TestWaitsAsSimulated(t *testing.T) {
	for _, c := range []struct {
		name      string
		variation float64
		duration  func(*rand.Rand) float64
		tolerance float64
	}{
		{"exponential", 1, (*rand.Rand).ExpFloat64, 0.07},
		{"constant", 0, func(*rand.Rand) float64 { return 1 }, 0.2},
	} {
		for _, slots := range []int{3, 12} {
			load := 0.8 * float64(slots)
			got := simulated(slots, load, c.duration)
			want := waits(slots, load, Demand{Analysis: time.Second, Variation: c.variation})
			t.Logf("%s, %d slots: simulated %+v, calculated %+v", c.name, slots, got, want)
			near(t, c.name+": share", got.Share/want.Share, 1, c.tolerance)
			near(t, c.name+": mean", got.Mean/want.Mean, 1, c.tolerance)
			near(t, c.name+": 95 %", got.P95/want.P95, 1, c.tolerance)
		}
	}
}

// simulated is a queue before slots with durations of one second in the mean.
func simulated(slots int, load float64, duration func(*rand.Rand) float64) (w Waits) {
	r := rand.New(rand.NewPCG(1, 2))
	free := make([]float64, slots) // when each slot is free
	var now float64
	queued := make([]float64, 300_000)
	for i := range queued {
		now += r.ExpFloat64() / load
		first := 0
		for j := range free {
			if free[j] < free[first] {
				first = j
			}
		}
		queued[i] = max(0, free[first]-now)
		free[first] = now + queued[i] + duration(r)
		w.Mean += queued[i] / float64(len(queued))
		if queued[i] > 0 {
			w.Share += 1 / float64(len(queued))
		}
	}
	slices.Sort(queued)
	w.P50, w.P95 = queued[len(queued)/2], queued[len(queued)*95/100]
	return w
}

// More instances are taken until the wait is short enough, and no more than that.
func TestInstancesForAWait(t *testing.T) {
	d := small()
	few := Size(d).Instances
	d.P95 = 100 * time.Millisecond
	s := Size(d)
	less := waits((s.Instances-1)*d.PerInstance, s.Load, d)
	if s.Instances <= few || s.Waits.P95 > 0.1 || less.P95 <= 0.1 {
		t.Errorf("%d instances: %+v; with one less: %+v", s.Instances, s.Waits, less)
	}
}

// With too few instances it says how much is refused, and never that it is served.
func TestSizeOfTooFew(t *testing.T) {
	d := small()
	d.Instances, d.PerMinute = 1, 240 // 8 at once, for 2 slots
	s := Size(d)
	near(t, "refused", s.Refused, 0.75, 0)
	near(t, "busy", s.Busy, 1, 0)
	var out strings.Builder
	if err := PrintSize(&out, d, s); err != nil || !strings.Contains(out.String(), "REFUSED                  75.0 %") ||
		!strings.Contains(out.String(), "these instances do 60 a minute") || strings.Contains(out.String(), "wait for a slot") {
		t.Errorf("%v\n%s", err, out.String())
	}
}

func TestSizeBlock(t *testing.T) {
	d := small()
	const shared = "\tshared redis rediss://oz:{env.REDIS_PASSWORD}@redis.internal\n"
	const block = "capacity {\n\tslots 4\n\tqueue 30\n\twait 10s\n\tmemory 128MiB\n"
	if got := Size(d).Block(d); got != block+shared+"}\n" {
		t.Errorf("got\n%s", got)
	}
	d.Spare = 0 // one gateway
	if got := Size(d).Block(d); got != block+"}\n" {
		t.Errorf("got\n%s", got)
	}
}

func TestSizeOfNonsense(t *testing.T) {
	for name, change := range map[string]func(*Demand){
		"--per-minute": func(d *Demand) { d.PerMinute = math.NaN() }, "--capsule": func(d *Demand) { d.Capsule = 0 },
		"durations": func(d *Demand) { d.Analysis = 0 }, "--variation": func(d *Demand) { d.Variation = math.Inf(1) },
		"--busy": func(d *Demand) { d.Busy = 1 }, "--link": func(d *Demand) { d.Link = math.NaN() },
		"--spare": func(d *Demand) { d.Spare = -1 },
	} {
		d := small()
		if err := d.Check(); err != nil {
			t.Fatal(err)
		}
		change(&d)
		if err := d.Check(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRoundedTimes(t *testing.T) {
	for s, want := range map[float64]string{0: "0s", 0.00012345: "123µs", 1.23456: "1.23s", 74.12: "1m14.1s", 12345: "3h25m0s"} {
		if got := seconds(s); got != want {
			t.Errorf("%v: got %s, want %s", s, got, want)
		}
	}
}
