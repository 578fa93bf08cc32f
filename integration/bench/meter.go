package main

import (
	"context"
	"os"
	"regexp"
	"runtime"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/procfs"
	"github.com/redis/go-redis/v9"
)

// meter measures what a gateway uses, and what else there is on the machine.
type meter struct {
	gateway *gateway
	server  *process      // its Redis, if there is one
	store   *redis.Client // to ask it

	from, to time.Time
	cores    int

	gatewayCPU, benchCPU, redisCPU, machineCPU time.Duration

	held       float64 // bytes in memory, in the mean
	resident   float64 // bytes, at most
	files      float64 // open ones, at most
	read       float64 // bytes
	written    float64 // bytes
	redisCalls float64
	redisBytes float64 // that it has more of

	begun   reading
	done    chan struct{}
	running sync.WaitGroup
	err     error
}

// reading is what counters say at one time.
type reading struct {
	gateway, bench, redis, machine time.Duration
	read, written, calls, stored   float64
}

const meterInterval = 500 * time.Millisecond // each look costs the gateway some milliseconds

func (m *meter) start(ctx context.Context) error {
	m.cores = runtime.NumCPU()
	if m.begun, m.err = m.now(ctx); m.err != nil {
		return m.err
	}
	m.from, m.done = time.Now(), make(chan struct{})
	m.running.Go(func() {
		if err := m.sample(ctx); err != nil {
			m.err = err
		}
	})
	return nil
}

// sample looks now and then at what goes up and down.
func (m *meter) sample(ctx context.Context) error {
	ticker := time.NewTicker(meterInterval)
	defer ticker.Stop()
	process, err := procfs.NewProc(m.gateway.pid())
	for n := 1.0; err == nil; n++ {
		var held float64
		var files int
		if held, err = m.gateway.metric(ctx, memoryMetric); err != nil {
			break
		}
		m.held += (held - m.held) / n
		if files, err = process.FileDescriptorsLen(); err != nil {
			break
		}
		m.files = max(m.files, float64(files))
		select {
		case <-m.done:
			return nil
		case <-ticker.C:
		}
	}
	return err
}

func (m *meter) stop(ctx context.Context) error {
	if m.done == nil {
		return context.Cause(ctx)
	}
	m.to = time.Now()
	close(m.done)
	m.running.Wait()
	if m.err != nil {
		return m.err
	}
	ended, err := m.now(ctx)
	if err != nil {
		return err
	}
	m.gatewayCPU, m.benchCPU = ended.gateway-m.begun.gateway, ended.bench-m.begun.bench
	m.redisCPU, m.machineCPU = ended.redis-m.begun.redis, ended.machine-m.begun.machine
	m.read, m.written, m.redisCalls = ended.read-m.begun.read, ended.written-m.begun.written, ended.calls-m.begun.calls
	m.redisBytes = ended.stored - m.begun.stored
	peak, err := peakMemory(m.gateway.pid())
	m.resident = float64(peak)
	return err
}

func (m *meter) used(cpu time.Duration) float64 { return cpu.Seconds() / m.to.Sub(m.from).Seconds() }

func (m *meter) now(ctx context.Context) (r reading, err error) {
	process, err := procfs.NewProc(m.gateway.pid())
	if err != nil {
		return r, err
	}
	// What it reads and writes by system calls: sockets, and some log.
	io, err := process.IO()
	if err != nil {
		return r, err
	}
	r.read, r.written = float64(io.RChar), float64(io.WChar)
	if r.gateway, err = cpuTime(m.gateway.pid()); err != nil {
		return r, err
	}
	if r.bench, err = processClock(os.Getpid()); err != nil { // without its children: the gateway and Redis
		return r, err
	}
	if r.machine, err = machineTime(); err != nil || m.store == nil {
		return r, err
	}
	if r.redis, err = cpuTime(m.server.pid()); err != nil {
		return r, err
	}
	r.calls, r.stored, err = m.redis(ctx)
	return r, err
}

// machineTime returns the CPU time of all that runs on the machine.
func machineTime() (time.Duration, error) {
	fs, err := procfs.NewDefaultFS()
	if err != nil {
		return 0, err
	}
	stat, err := fs.Stat()
	c := stat.CPUTotal
	return time.Duration((c.User + c.Nice + c.System + c.IRQ + c.SoftIRQ) * float64(time.Second)), err
}

var (
	scriptCalls = regexp.MustCompile(`cmdstat_eval(?:sha)?:calls=(\d+)`)
	usedMemory  = regexp.MustCompile(`(?m)^used_memory:(\d+)`)
)

// redis returns how many scripts were called, which is all that a gateway does there, and how many bytes are stored.
func (m *meter) redis(ctx context.Context) (calls, stored float64, err error) {
	text, err := m.store.Info(ctx, "commandstats", "memory").Result()
	if err != nil {
		return 0, 0, err
	}
	for _, found := range scriptCalls.FindAllStringSubmatch(text, -1) {
		n, _ := strconv.ParseFloat(found[1], 64) // they are digits
		calls += n
	}
	if found := usedMemory.FindStringSubmatch(text); found != nil {
		stored, _ = strconv.ParseFloat(found[1], 64)
	}
	return calls, stored, nil
}
