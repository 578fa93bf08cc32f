package diagnose

import (
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/dustin/go-humanize"
)

// WriteSize writes a demand's Sizing as JSON.
func WriteSize(out io.Writer, s Sizing) error {
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", "  ")
	return encoder.Encode(s)
}

// PrintSize writes the Sizing of a demand as a table, and the block that goes with
// it. The block is all that isn't a comment: the output is a Caddyfile's part.
func PrintSize(out io.Writer, d Demand, s Sizing) error {
	p := sizePrinter{out: out}
	p.head("Capsules")
	p.row("at the peak", "%.4g/s", "%.6g a minute, of %s", s.Rate, d.PerMinute, humanize.IBytes(uint64(d.Capsule)))
	p.oz(d, s)
	p.queue(d, s)
	p.gateways(d, s)
	p.links(d, s)
	p.redis(s)
	p.losses(d, s)
	if p.err == nil {
		_, p.err = io.WriteString(out, "\n"+s.Block(d))
	}
	return p.err
}

// Block returns the block `capacity` for each of the gateways.
func (s Sizing) Block(d Demand) string {
	shared := ""
	if s.Gateways+d.Spare > 1 {
		shared = "\tshared redis rediss://oz:{env.REDIS_PASSWORD}@redis.internal\n"
	}
	return fmt.Sprintf("capacity {\n\tslots %d\n\tqueue %d\n\twait %s\n\tmemory %dMiB\n%s}\n", s.Slots, s.Queue, roundTime(d.Wait), s.Memory>>20, shared)
}

type sizePrinter struct {
	out io.Writer
	err error
}

func (p *sizePrinter) line(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.out, format, args...)
	}
}

func (p *sizePrinter) head(title string) { p.line("# %s\n", title) }

// row writes a name, a value and how it comes about. The arguments are the
// value's, and then the others.
func (p *sizePrinter) row(name, value, from string, args ...any) {
	n := verbs(value)
	p.line("#   %-24s %-16s %s\n", name, fmt.Sprintf(value, args[:n]...), fmt.Sprintf(from, args[n:]...))
}

func verbs(format string) (n int) {
	for i := 0; i+1 < len(format); i++ {
		if format[i] == '%' {
			if format[i+1] != '%' {
				n++
			}
			i++
		}
	}
	return n
}

func (p *sizePrinter) oz(d Demand, s Sizing) {
	p.head("Oz")
	p.row("analyses at once", "%.4g", "rate × %s", s.Load, roundTime(d.Analysis))
	p.row("instances", "%d + %d", "of %d analyses at once each; so many as may be lost are spare", s.Instances, d.Spare, d.PerInstance)
	p.row("slots", "%d", "of the instances less the spare ones, %.1f %% busy", s.Slots, 100*s.Busy)
	if s.Refused > 0 {
		p.row("REFUSED", "%.1f %%", "of the capsules: these instances do %.6g a minute", 100*s.Refused, float64(s.Slots)/d.Analysis.Seconds()*60)
		return
	}
	p.row("wait for a slot", "%.1f %%", "of the capsules; half up to %s, 95 %% up to %s (Erlang C)", 100*s.Waits.Share, seconds(s.Waits.P50), seconds(s.Waits.P95))
	if s.Gateways+d.Spare > 1 {
		p.row("without shared", "%.1f %%", "half up to %s, 95 %% up to %s: slots ÷ gateways in each",
			100*s.Divided.Share, seconds(s.Divided.P50), seconds(s.Divided.P95))
	}
}

func (p *sizePrinter) queue(d Demand, s Sizing) {
	p.head("Queue")
	p.row("uploads at once", "%.4g", "rate × %s; in the queue with three deviations, √, more", s.Uploads, roundTime(d.Upload))
	p.row("may wait beside them", "%d", "slots × wait %s ÷ %s", s.Waiting, roundTime(d.Wait), roundTime(d.Analysis))
	if s.Drain > 0 {
		p.row("a full queue is empty", "%s", "after, while capsules come as before", seconds(s.Drain))
	}
}

func (p *sizePrinter) gateways(d Demand, s Sizing) {
	p.head("Gateways")
	p.row("gateways", "%d + %d", "%d for links, %d for CPU", s.Gateways, d.Spare, s.ByLink, s.ByCPU)
	p.row("CPU", "%.2f cores", "of all: rate × %s, and %s for Redis; cores half busy", s.CPUs, seconds(s.CPU), seconds(s.CPURedis))
	p.row("memory of each", "%s", "(slots + queue) × capsule ÷ gateways; in the mean all hold %s", mib(s.Memory), mib(int64(s.Held)))
	p.row("RAM of each", "%s", "at most: memory and half of it, %s a place, %s an idle connection; %s in the mean", mib(s.RAM),
		humanize.IBytes(ramPerCapsule), humanize.IBytes(ramPerIdle), mib(s.RAMUsual))
	p.row("idle connections of each", "%.0f", "rate × %s ÷ gateways, if clients don't close them", s.Idle, roundTime(d.Idle))
	p.row("open files of each", "%d", "at most: places, two for each slot, idle connections; %d in the mean", s.Files, s.FilesUsual)
	p.row("session tokens", "%.4g/s", "one a capsule; each within %s, 16 calls at once a gateway", s.Rate, seconds(s.TokenWithin))
}

func (p *sizePrinter) links(d Demand, s Sizing) {
	p.head("Links, all gateways together")
	p.row("from clients", "%s", "rate × capsule, and 5 %% for TCP, IP and TLS", gbit(s.FromClients))
	p.row("to Oz", "%s", "the same", gbit(s.ToOz))
	p.row("from Oz", "%s", "rate × answer of %s, best shot and all", gbit(s.FromOz), humanize.Bytes(uint64(d.Answer)))
	p.row("to the app", "%s", "rate × folder of %s", gbit(s.ToApp), humanize.IBytes(folderSize))
}

func (p *sizePrinter) redis(s Sizing) {
	p.head("Redis")
	p.row("for shared", "%.0f calls/s", "%.2g a capsule, and one a second of each gateway", s.RedisShared, redisShared)
	p.row("for replay_guard", "%.0f calls/s", "%.2g a capsule", s.RedisReplay, redisReplay)
	p.row("CPU", "%.2f cores", "of its one, at most: %s a call; for shared %s, %s a gateway, %s a slot of its own", s.RedisCPUs,
		time.Duration(redisPerReplay), time.Duration(redisPerShared), time.Duration(redisPerGateway), time.Duration(redisPerSlot))
	p.row("answers within", "%s", "at most, or calls fail: %d connections of each gateway", seconds(s.RedisWithin), redisConnections)
	p.row("for its claims", "%s", "rate × window %s × %d B", mib(int64(s.RedisBytes)), roundTime(replayWindow), int(redisPerClaim))
}

func (p *sizePrinter) losses(d Demand, s Sizing) {
	p.head("Losses")
	p.row("a gateway dies", "%.0f capsules", "in progress in it are lost; without shared the slots left are %.1f %% busy", s.LostCapsules, 100*s.BusyLess)
	p.row("an Oz dies", "%d analyses", "in progress are lost, at most; the others do %.3g at once instead of %.3g, at most", s.LostAnalyses, s.PerOzLess, s.PerOz)
	if d.Spare == 0 {
		p.row("NOTHING IS SPARE", "", "what is lost is missing")
	}
}

func mib(n int64) string { return fmt.Sprintf("%d MiB", (n+1<<20-1)>>20) }

func gbit(bytes float64) string {
	if bits := bytes * 8; bits < 1e9 {
		return fmt.Sprintf("%.1f Mbit/s", bits/1e6)
	}
	return fmt.Sprintf("%.2f Gbit/s", bytes*8/1e9)
}

// roundTime writes a duration without units that are zero: 5m, not 5m0s.
func roundTime(d time.Duration) string {
	switch {
	case d >= time.Hour && d%time.Hour == 0:
		return fmt.Sprintf("%dh", d/time.Hour)
	case d >= time.Minute && d%time.Minute == 0:
		return fmt.Sprintf("%dm", d/time.Minute)
	}
	return d.String()
}

// seconds rounds to three digits.
func seconds(s float64) string {
	d := time.Duration(s * float64(time.Second))
	for unit := time.Duration(1); unit < time.Hour; unit *= 10 {
		if d < 1000*unit {
			return d.Round(unit).String()
		}
	}
	return d.Round(time.Second).String()
}
