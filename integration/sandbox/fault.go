package sandbox

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Fault is something that goes wrong. The zero value is no fault. Written as text it is
//
//	kind[:value][,name=value…][@folders|@biometry|@token|@auth|@refresh|@all][*times]
//
// as in "cut", "drip:10ms", "early:400,bytes=1MiB", "status:503,retry-after=30" or "status:500@token*1". Which field the
// value after the colon sets depends on the kind; fields left zero mean the kind's default. See [Kinds].
type Fault struct {
	Kind string // one of Kinds; "" for none

	Status     int           // status=   an HTTP status
	Bytes      int64         // bytes=    how much, or after how much
	N          int           // n=        how many, how deep, which error code
	Pause      time.Duration // pause=    how long between two bytes
	Word       string        // word=     a text, or a variety of the kind
	RetryAfter string        // retry-after= its value with 429 and 503; "none" leaves it out; default 7

	On    string // which calls: "folders" (default: capsules), "biometry", "token" (session_token), "auth", "refresh", "all"
	Times int    // only the first so many requests after it was set; 0: every one
}

// Calls, as a fault aims at them and a receipt tells them apart.
const (
	OnFolders  = "folders"  // POST to folders, of a capsule
	OnBiometry = "biometry" // POST to folders, of images to match
	OnToken    = "token"    // GET of a session token
	OnAuth     = "auth"     // POST of credentials
	OnRefresh  = "refresh"  // POST of an expire_token
	OnAll      = "all"      // every call; of faults only
)

// Scopes lists where a fault can strike.
func Scopes() []string { return []string{OnFolders, OnBiometry, OnToken, OnAuth, OnRefresh, OnAll} }

// KindInfo describes one kind of fault.
type KindInfo struct {
	Name  string
	Usage string // with its parameter, as in "cut[:BYTES]"
	Help  string // one line
	Group string // what it spoils: wire, answer, form or content
}

// Kinds lists every kind of fault.
func Kinds() []KindInfo {
	infos := make([]KindInfo, 0, len(kinds))
	for _, k := range kinds {
		usage := k.name
		if k.param != "" {
			usage += "[:" + strings.ToUpper(k.param) + "]"
		}
		infos = append(infos, KindInfo{k.name, usage, k.help, k.group})
	}
	return infos
}

// ParseFault reads a fault from its text. "" and "none" are no fault.
func ParseFault(text string) (Fault, error) {
	var f Fault
	if text == "" || text == "none" {
		return f, nil
	}
	fail := func(format string, args ...any) (Fault, error) {
		return Fault{}, fmt.Errorf("fault %q: %w", text, fmt.Errorf(format, args...))
	}
	rest, times, found := cutLast(text, "*")
	if found {
		n, err := strconv.Atoi(times)
		if err != nil || n < 1 {
			return fail("%q is no number of times", times)
		}
		f.Times = n
	}
	rest, f.On, _ = cutLast(rest, "@")
	options := strings.Split(rest, ",")
	var value string
	var valued bool
	f.Kind, value, valued = strings.Cut(options[0], ":")
	k := kindByName(f.Kind)
	if k == nil {
		return fail("no such kind")
	}
	if valued {
		if k.param == "" {
			return fail("%s takes no value", f.Kind)
		}
		if err := f.setField(k.param, value); err != nil {
			return fail("%w", err)
		}
	}
	for _, option := range options[1:] {
		name, value, _ := strings.Cut(option, "=")
		if err := f.setField(name, value); err != nil {
			return fail("%w", err)
		}
	}
	f, err := f.withDefaults()
	if err != nil {
		return Fault{}, err
	}
	return f, nil
}

// MustFault is ParseFault for texts written in source code. It panics when they are wrong.
func MustFault(text string) Fault {
	f, err := ParseFault(text)
	if err != nil {
		panic(err)
	}
	return f
}

func (f *Fault) setField(name, value string) (err error) {
	switch name {
	case "status":
		f.Status, err = strconv.Atoi(value)
	case "bytes":
		f.Bytes, err = ParseSize(value)
	case "n":
		f.N, err = strconv.Atoi(value)
	case "pause":
		f.Pause, err = time.ParseDuration(value)
	case "word":
		f.Word = value
	case "retry-after":
		f.RetryAfter = value
	default:
		return fmt.Errorf("no option %q", name)
	}
	if err != nil {
		return fmt.Errorf("%s: %q makes no sense", name, value)
	}
	return nil
}

// String is the text that ParseFault reads.
func (f Fault) String() string {
	if f.Kind == "" {
		return "none"
	}
	var b strings.Builder
	b.WriteString(f.Kind)
	option := func(name string, set bool, value any) {
		if set {
			fmt.Fprintf(&b, ",%s=%v", name, value)
		}
	}
	option("status", f.Status != 0, f.Status)
	option("bytes", f.Bytes != 0, f.Bytes)
	option("n", f.N != 0, f.N)
	option("pause", f.Pause != 0, f.Pause)
	option("word", f.Word != "", f.Word)
	option("retry-after", f.RetryAfter != "", f.RetryAfter)
	if f.On != "" && f.On != OnFolders {
		b.WriteString("@" + f.On)
	}
	if f.Times > 0 {
		fmt.Fprintf(&b, "*%d", f.Times)
	}
	return b.String()
}

// withDefaults fills in what the kind takes for granted, and says what cannot be meant.
func (f Fault) withDefaults() (Fault, error) {
	if f.Kind == "" {
		if f != (Fault{}) {
			return f, fmt.Errorf("a fault without a kind")
		}
		return f, nil
	}
	k := kindByName(f.Kind)
	if k == nil {
		return f, fmt.Errorf("no fault of kind %q", f.Kind)
	}
	fill(&f.Status, k.defaults.Status)
	fill(&f.Bytes, k.defaults.Bytes)
	fill(&f.N, k.defaults.N)
	fill(&f.Pause, k.defaults.Pause)
	fill(&f.Word, k.defaults.Word)
	fill(&f.On, OnFolders)
	switch {
	case !slices.Contains(Scopes(), f.On):
		return f, fmt.Errorf("fault %q: cannot strike %q", f.Kind, f.On)
	case k.ofFolders() && f.On != OnFolders && f.On != OnBiometry:
		return f, fmt.Errorf("fault %q spoils folders only", f.Kind)
	case k.shot && f.On != OnFolders:
		return f, fmt.Errorf("fault %q spoils best shots only", f.Kind)
	case f.Bytes < 0, f.N < 0, f.Pause < 0, f.Times < 0:
		return f, fmt.Errorf("fault %q: numbers must not be negative", f.Kind)
	case k.param == "status" && (f.Status < 200 || f.Status > 599):
		return f, fmt.Errorf("fault %q: status %d is not final", f.Kind, f.Status)
	case k.words != nil && !slices.Contains(k.words, f.Word):
		return f, fmt.Errorf("fault %q: word %q, want one of %q", f.Kind, f.Word, k.words)
	}
	return f, nil
}

func fill[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// The limits of a fault that a capsule brings along. Capsules come from anybody who reaches the demo page, and a fault without limits
// took all memory of the machine.
const (
	maxFaultBytes = 64 << 20
	maxFaultN     = 100
	maxFaultPause = time.Minute
)

// capsuleFault reads the fault that a capsule brings along.
func capsuleFault(text string) (Fault, error) {
	f, err := ParseFault(text)
	if err != nil || f == (Fault{}) {
		return f, err
	}
	if k := kindByName(f.Kind); k.before != nil || k.slow != nil || f.On != OnFolders || f.Times != 0 {
		return f, fmt.Errorf("fault %q: a capsule cannot bring it along (want one that takes hold after the body was read)", text)
	}
	if f.Bytes > maxFaultBytes || f.N > maxFaultN || f.Pause > maxFaultPause {
		return f, fmt.Errorf("fault %q: too much for a capsule (want at most %d bytes, n=%d and a pause of %s)", text, maxFaultBytes, maxFaultN, maxFaultPause)
	}
	return f, nil
}

func (f Fault) concerns(route string) bool { return f.On == OnAll || f.On == route }

// ParseSize reads a number of bytes: "1000", "64KiB", "2MiB", "1MB", "64k".
func ParseSize(text string) (int64, error) {
	digits := strings.TrimRight(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ")
	units := map[string]int64{
		"": 1, "b": 1, "k": 1 << 10, "kib": 1 << 10, "kb": 1000, "m": 1 << 20, "mib": 1 << 20, "mb": 1000_000,
		"g": 1 << 30, "gib": 1 << 30, "gb": 1000_000_000,
	}
	unit, known := units[strings.ToLower(strings.TrimSpace(text[len(digits):]))]
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || !known || n < 0 || n > 1<<40/unit {
		return 0, fmt.Errorf("%q is not a size: want a number, with or without KiB, MiB, KB, MB …", text)
	}
	return n * unit, nil
}
