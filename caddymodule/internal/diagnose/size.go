package diagnose

import (
	"errors"
	"math"
	"time"
)

// What a capsule costs, measured. Those of the gateway are of the block that
// Sizing prints with replay_guard and seal, over HTTP/2 with TLS and a new
// connection for each capsule, as phones make them: the dearest way of all.
// `go run ./integration/bench sizing` prints the totals that they were fitted to,
// and docs/sizing.md says on what machine these were taken.
const (
	cpuPerCapsule = 3.0 * float64(time.Millisecond) // of the gateway, whatever its size; a TLS handshake is in it
	cpuPerMiB     = 3.3 * float64(time.Millisecond) // and for each MiB
	cpuPerPiece   = 60 * float64(time.Microsecond)  // and for each piece that the gateway waits for, over a slow link
	cpuOfRedis    = 0.9 * float64(time.Millisecond) // and for its calls, if several gateways share one
	piece         = 4 << 10                         // the smallest that is usual: three packets

	ramOfGateway  = 96 << 20  // of one that does nothing
	ramPerCapsule = 400 << 10 // of an open upload or analysis, less what `memory` counts
	ramOfMemory   = 1.5       // of what `memory` counts: it is garbage for a while
	ramPerIdle    = 64 << 10  // of a connection that a client keeps open

	folderSize   = 4 << 10 // of the app's request: the folder less its best shot, and header fields
	wireOverhead = 1.05    // of TCP, IP and TLS: some 40 bytes in a packet of 1,500, and 22 in each TLS record
)

// What Redis is asked for, and what it costs its one core: the case redis of the
// same command, and `go test -bench Slots ./caddymodule/redis` with 1, 3 and 10
// gateways.
const (
	redisShared      = 2.5                             // calls for a capsule, less when one call tells of several
	redisReplay      = 2.0                             // calls for a capsule: it is claimed, and settled
	redisPerReplay   = 120 * float64(time.Microsecond) // of such a call: 20 of the script, the rest of its way
	redisPerShared   = 200 * float64(time.Microsecond) // of such a call
	redisPerGateway  = 6 * float64(time.Microsecond)   // and for each gateway
	redisPerSlot     = 0.2 * float64(time.Microsecond) // and for each slot that the calling gateway has
	redisConnections = 100                             // of a gateway, at most
	redisTimeout     = time.Second                     // of a call
	redisPerClaim    = 200                             // bytes
	replayWindow     = 15 * time.Minute                // the option's default
	sharedHeartbeat  = 1                               // calls of a gateway in a second
	tokenCalls       = 16                              // at once, from one gateway to one Oz; docs/configuration.md#session-tokens
)

// What is left free: a gateway's cores are half busy at the peak, so that one
// with a burst or a garbage collection answers at once, and a link seven tenths,
// beyond which packets are lost.
const (
	cpuBusy  = 0.5
	linkBusy = 0.7
)

// leastMemory is what docs/capacity.md wants for chunked uploads: four times the
// default of max_capsule.
const (
	leastMemory = 128 << 20
	memoryStep  = 64 << 20
)

// Demand says what is to be served, and with what.
type Demand struct {
	PerMinute float64       // capsules at the peak
	Capsule   int64         // usual size, in bytes
	Answer    int64         // of Oz, with its best shot
	Upload    time.Duration // mean duration
	Wait      time.Duration // the option `wait`
	Idle      time.Duration // how long a client keeps its connection

	Analysis    time.Duration // mean duration
	Variation   float64       // of it: standard deviation ÷ mean
	PerInstance int           // analyses at once in an Oz
	Busy        float64       // share of the slots' time, at most
	P95         time.Duration // how long 95 of 100 capsules wait, at most
	Instances   int           // of Oz, less the spare ones; 0: as many as are needed

	Gateways int     // less the spare ones; 0: as many as are needed
	Cores    int     // of one
	Link     float64 // of one, in bits a second, in each direction
	Spare    int     // instances of Oz, and gateways, that may be lost
}

// Check returns what is wrong with a demand.
func (d Demand) Check() error {
	switch {
	case !(d.PerMinute > 0 && d.PerMinute <= 1e6):
		return errors.New("--per-minute: want more than zero and at most a million")
	case d.Capsule <= 0 || d.Answer <= 0:
		return errors.New("--capsule, --answer: must be more than zero")
	case d.Analysis <= 0 || d.Upload < 0 || d.Wait <= 0 || d.Idle < 0 || d.P95 < 0:
		return errors.New("durations: must be more than zero")
	case !(d.Variation >= 0 && d.Variation <= 10):
		return errors.New("--variation: want 0 (always the same) to 10")
	case !(d.Busy > 0 && d.Busy < 1):
		return errors.New("--busy: want more than 0 and less than 100")
	case d.PerInstance < 1 || d.Cores < 1 || !(d.Link > 0):
		return errors.New("--per-instance, --cores, --link: must be more than zero")
	case d.Instances < 0 || d.Gateways < 0 || d.Spare < 0:
		return errors.New("--instances, --gateways, --spare: must not be less than zero")
	}
	return nil
}

// Sizing is the answer to a Demand. Rates are a second's, and sizes are bytes.
type Sizing struct {
	Rate float64 `json:"capsules_per_second"`
	// Load is how many analyses run at once in the mean: Little's law, rate ×
	// duration. Less slots can't serve it, however many capsules may wait.
	Load      float64 `json:"analyses_at_once"`
	Instances int     `json:"instances"`
	Slots     int     `json:"slots"`
	Busy      float64 `json:"slots_busy"`
	Refused   float64 `json:"refused"` // share, of a load that is more than the slots
	Waits     Waits   `json:"waits"`
	Divided   Waits   `json:"waits_without_shared"` // with the slots divided among the gateways
	Uploads   float64 `json:"uploads_at_once"`
	Waiting   int     `json:"may_wait"`
	Queue     int     `json:"queue"`
	Drain     float64 `json:"burst_drains_in"` // seconds; 0: never

	Gateways   int     `json:"gateways"`
	ByCPU      int     `json:"gateways_for_cpu"`
	ByLink     int     `json:"gateways_for_links"`
	CPU        float64 `json:"cpu_per_capsule"`       // seconds
	CPURedis   float64 `json:"cpu_per_capsule_redis"` // and as many more with shared and replay_guard in Redis
	CPUs       float64 `json:"cpus"`                  // of all gateways together
	Memory     int64   `json:"memory"`                // the option, of a gateway
	Held       float64 `json:"memory_held"`           // in the mean, by all gateways together
	RAM        int64   `json:"ram"`                   // of a gateway with all its places and memory taken
	RAMUsual   int64   `json:"ram_usual"`             // of a gateway with the load in the mean
	Files      int     `json:"files"`                 // open ones, in the same way
	FilesUsual int     `json:"files_usual"`
	Idle       float64 `json:"idle_connections"`

	FromClients float64 `json:"bytes_from_clients"`
	ToOz        float64 `json:"bytes_to_oz"`
	FromOz      float64 `json:"bytes_from_oz"`
	ToApp       float64 `json:"bytes_to_app"`

	RedisShared float64 `json:"redis_calls_shared"`
	RedisReplay float64 `json:"redis_calls_replay_guard"`
	RedisBytes  float64 `json:"redis_bytes"`
	RedisCPUs   float64 `json:"redis_cpus"`
	RedisWithin float64 `json:"redis_within"` // seconds in which Redis must answer, or calls wait for a connection
	TokenWithin float64 `json:"token_within"` // seconds in which Oz must answer for one

	LostCapsules float64 `json:"lost_with_a_gateway"`      // in progress in one
	BusyLess     float64 `json:"slots_busy_one_less"`      // without shared, of the gateways that are left
	LostAnalyses int     `json:"lost_with_an_instance"`    // at most
	PerOz        float64 `json:"analyses_per_instance"`    // in the mean, while all are there
	PerOzLess    float64 `json:"analyses_per_instance_at"` // at most, while the spare ones are lost
}

// Waits says how long capsules wait for a slot, not counting their own upload.
type Waits struct {
	Share float64 `json:"share"` // of the capsules, that wait at all
	Mean  float64 `json:"mean"`  // seconds, of all capsules
	P50   float64 `json:"p50"`
	P95   float64 `json:"p95"`
}

// Size does the arithmetic.
func Size(d Demand) (s Sizing) {
	s.Rate = d.PerMinute / 60
	s.Load = s.Rate * d.Analysis.Seconds()
	s.Instances = d.Instances
	if s.Instances == 0 {
		s.Instances = instancesFor(d, s.Load)
	}
	s.Slots = s.Instances * d.PerInstance
	s.Busy = min(1, s.Load/float64(s.Slots))
	s.Refused = max(0, 1-float64(s.Slots)/s.Load)
	s.Waits = waits(s.Slots, s.Load, d)
	sizeGateways(&s, d)
	all := s.Gateways + d.Spare
	s.Divided = waits(max(1, s.Slots/all), s.Load/float64(all), d)
	sizeQueue(&s, d)
	sizeMachines(&s, d)
	sizeRedis(&s, d)
	sizeLosses(&s, d)
	return s
}

// instancesFor returns the fewest instances that are not too busy, and that let
// 95 of 100 capsules have a slot in time.
func instancesFor(d Demand, load float64) int {
	n := max(1, ceil(load/d.Busy/float64(d.PerInstance)))
	for waits(n*d.PerInstance, load, d).P95 > d.P95.Seconds() {
		n++
	}
	return n
}

// waits is the queue M/G/c: capsules come at random (Poisson), and c slots serve
// them in order. Erlang's C is the share that waits; for durations that aren't
// exponential its waits are scaled by (1 + variation²) ÷ 2 (Allen and Cunneen).
// Analyses that always take the same time halve the wait.
func waits(slots int, load float64, d Demand) (w Waits) {
	if load >= float64(slots) {
		wait := d.Wait.Seconds()
		return Waits{Share: 1, Mean: wait, P50: wait, P95: wait}
	}
	scale := d.Analysis.Seconds() * (1 + d.Variation*d.Variation) / 2 / (float64(slots) - load)
	w.Share = erlangC(slots, load)
	w.Mean = w.Share * scale
	// An exponential tail: P(wait > t) = share × e^(-t ÷ scale).
	w.P50 = scale * max(0, math.Log(w.Share/0.50))
	w.P95 = scale * max(0, math.Log(w.Share/0.05))
	return w
}

// erlangC returns the share of arrivals that find all slots taken. It goes by
// Erlang's B, whose recursion stays in range for thousands of slots; factorials
// don't.
func erlangC(slots int, load float64) float64 {
	b := 1.0
	for n := 1; n <= slots; n++ {
		b = load * b / (float64(n) + load*b)
	}
	return b / (1 - load/float64(slots)*(1-b))
}

// sizeQueue finds the room for capsules that have no slot yet. With `memory` it is
// for uploads, too: their number is Poisson's, so three standard deviations above
// its mean are enough but for one time in a thousand. Beyond them as many may wait
// as the slots serve within `wait`.
func sizeQueue(s *Sizing, d Demand) {
	s.Uploads = s.Rate * d.Upload.Seconds()
	s.Waiting = int(float64(s.Slots) * d.Wait.Seconds() / d.Analysis.Seconds())
	s.Queue = ceil(s.Uploads+3*math.Sqrt(s.Uploads)) + s.Waiting
	if free := float64(s.Slots) - s.Load; free > 0 {
		s.Drain = float64(s.Waiting) * d.Analysis.Seconds() / free
	}
}

// sizeGateways finds how many gateways have the cores and the links for it. A
// gateway's link carries a capsule twice, once in each direction, and Oz's answer
// in that of the clients.
func sizeGateways(s *Sizing, d Demand) {
	cpu := cpuPerCapsule + cpuPerMiB*float64(d.Capsule)/(1<<20)
	if d.Upload > 0 {
		cpu += cpuPerPiece * float64(d.Capsule) / piece
	}
	s.CPU = cpu / float64(time.Second)
	s.CPURedis = cpuOfRedis / float64(time.Second)
	s.CPUs = s.Rate * s.CPU
	if d.Gateways != 1 || d.Spare > 0 {
		s.CPUs += s.Rate * s.CPURedis
	}
	s.FromClients = s.Rate * float64(d.Capsule) * wireOverhead
	s.ToOz = s.FromClients
	s.FromOz = s.Rate * float64(d.Answer) * wireOverhead
	s.ToApp = s.Rate * folderSize * wireOverhead
	s.ByCPU = ceil(s.CPUs / float64(d.Cores) / cpuBusy)
	s.ByLink = ceil(max(s.FromClients+s.FromOz, s.ToOz+s.ToApp) * 8 / d.Link / linkBusy)
	if s.Gateways = d.Gateways; s.Gateways == 0 {
		s.Gateways = max(1, s.ByCPU, s.ByLink)
	}
}

// sizeMachines finds what one gateway needs while the spare ones are lost.
// Capsules are in memory until Oz has read them: half of each upload in the mean,
// and all of it while it waits. What `memory` may hold is more: a whole capsule
// for each place.
func sizeMachines(s *Sizing, d Demand) {
	share := 1 / float64(s.Gateways)
	places := float64(s.Slots+s.Queue) * share
	s.Memory = max(leastMemory, int64(ceil(places*float64(d.Capsule)/memoryStep))*memoryStep)
	s.Held = s.Rate * float64(d.Capsule) * (d.Upload.Seconds()/2 + s.Waits.Mean)
	s.Idle = s.Rate * d.Idle.Seconds() * share
	inProgress := s.Rate * (d.Upload + d.Analysis).Seconds() * share
	s.RAM = ram(places, float64(s.Memory), s.Idle)
	s.RAMUsual = ram(inProgress, s.Held*share, s.Idle)
	s.Files = files(places, float64(s.Slots)*share, s.Idle)
	s.FilesUsual = files(inProgress, min(s.Load, float64(s.Slots))*share, s.Idle)
	s.TokenWithin = tokenCalls / (s.Rate * share)
}

func ram(capsules, held, idle float64) int64 {
	return ramOfGateway + int64(capsules*ramPerCapsule+held*ramOfMemory+idle*ramPerIdle)
}

// files counts a client's connection for each capsule, one to Oz for each slot and
// one to the app, those that are kept, and some for Caddy itself.
func files(capsules, slots, idle float64) int { return ceil(capsules+2*slots+idle) + 20 }

func sizeRedis(s *Sizing, d Demand) {
	s.RedisShared = s.Rate*redisShared + float64(s.Gateways+d.Spare)*sharedHeartbeat
	s.RedisReplay = s.Rate * redisReplay
	s.RedisBytes = s.Rate * replayWindow.Seconds() * redisPerClaim
	ownSlots := min(s.Load, float64(s.Slots)) / float64(s.Gateways)
	perShared := redisPerShared + redisPerGateway*float64(s.Gateways+d.Spare) + redisPerSlot*ownSlots
	s.RedisCPUs = (s.RedisReplay*redisPerReplay + s.RedisShared*perShared) / float64(time.Second)
	s.RedisWithin = min(redisTimeout.Seconds(), float64(redisConnections*s.Gateways)/s.RedisReplay)
}

// sizeLosses says what goes with one gateway, and with one Oz. Slots are those of
// the instances less the spare ones, so that the others don't get more than
// PerInstance analyses when these are lost.
func sizeLosses(s *Sizing, d Demand) {
	all := float64(s.Gateways + d.Spare)
	s.LostCapsules = s.Rate * (d.Upload.Seconds() + s.Waits.Mean + d.Analysis.Seconds()) / all
	s.BusyLess = 1
	if all > 1 {
		s.BusyLess = min(1, s.Busy*all/(all-1))
	}
	s.LostAnalyses = d.PerInstance
	s.PerOz = min(s.Load, float64(s.Slots)) / float64(s.Instances+d.Spare)
	s.PerOzLess = float64(s.Slots) / float64(s.Instances)
}

// ceil doesn't count what floating point adds.
func ceil(x float64) int { return int(math.Ceil(x - 1e-9)) }
