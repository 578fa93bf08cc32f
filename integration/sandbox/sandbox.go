package sandbox

import (
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
)

// Sandbox is a stand-in for one Oz Instant server. It is safe for concurrent use, also while its options and its fault
// are being changed.
type Sandbox struct {
	keys     *keyPair
	used     usedTokens
	sessions sessions
	book     *book
	slots    slots
	shots    *cache[shotKey, base64Text]

	mu        sync.Mutex
	opts      Options
	kind      *kind         // what opts.Fault.Kind stands for
	faultUses int           // how often the fault was met, for Fault.Times
	released  chan struct{} // closed when the fault changes
	held      chan struct{} // closed when analyses may end

	closing sync.Once
	done    chan struct{} // closed by Close
}

// New makes a sandbox. It fails when keys cannot be read or an option makes no sense.
func New(o Options) (*Sandbox, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("sandbox options: %w", err)
	}
	keys, err := loadOrMakeKeys(o.KeysDir)
	if err != nil {
		return nil, fmt.Errorf("sandbox keys: %w", err)
	}
	s := &Sandbox{keys: keys, book: newBook(o.KeepReceipts), shots: newShots(), opts: o, kind: kindByName(o.Fault.Kind)}
	s.released, s.held, s.done = make(chan struct{}), make(chan struct{}), make(chan struct{})
	close(s.held)
	s.slots.changed = s.book.broadcast
	return s, nil
}

// Options returns the switches as they are now.
func (s *Sandbox) Options() Options {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.opts
	o.Accounts = maps.Clone(o.Accounts) // whoever changes them must not do so behind our back
	return o
}

// SetOptions changes the switches for requests that come from now on. KeysDir and KeepReceipts stay as New set them. It
// panics when an option makes no sense: a test with a mistyped switch would otherwise prove nothing.
func (s *Sandbox) SetOptions(o Options) {
	o, err := o.withDefaults()
	if err != nil {
		panic("sandbox options: " + err.Error())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if o.Fault != s.opts.Fault {
		s.faultUses = 0
		s.release()
	}
	s.opts, s.kind = o, kindByName(o.Fault.Kind)
}

// SetFault changes the fault for requests that come from now on; the zero Fault means none. Everything that hangs because
// of the fault before is let go: its connections are closed. It panics on a kind that does not exist.
func (s *Sandbox) SetFault(f Fault) {
	f, err := f.withDefaults()
	if err != nil {
		panic("sandbox fault: " + err.Error())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faultUses = 0
	s.release()
	s.opts.Fault, s.kind = f, kindByName(f.Kind)
}

// HoldAnalyses lets no analysis end that takes place from now on until release is called, however long AnalysisTime is.
func (s *Sandbox) HoldAnalyses() (release func()) {
	held := make(chan struct{})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = held
	return sync.OnceFunc(func() { close(held) })
}

// Close lets go of everything that hangs and of analyses under way, so that a server around the sandbox can shut down.
func (s *Sandbox) Close() {
	s.closing.Do(func() { close(s.done) })
}

// release lets go of what hangs because of the fault so far. It is called with mu held.
func (s *Sandbox) release() {
	close(s.released)
	s.released = make(chan struct{})
}

// metFault is a fault that a request runs into.
type metFault struct {
	*kind
	Fault
	released <-chan struct{} // closed when the fault is changed
}

// takeFault returns the fault that this request on route meets, and counts it.
func (s *Sandbox) takeFault(route string) metFault {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.opts.Fault
	if s.kind == nil || !f.concerns(route) || (f.Times > 0 && s.faultUses >= f.Times) {
		return metFault{kind: &kind{}}
	}
	s.faultUses++
	return metFault{s.kind, f, s.released}
}

// brought returns the fault that a capsule brings along, for a request that has met no other.
func (s *Sandbox) brought(met metFault, c capsule) metFault {
	if met.Kind != "" || c.Payload == nil || c.Payload.Fault == "" {
		return met
	}
	f, err := capsuleFault(c.Payload.Fault)
	if err != nil { // made by hand
		return met
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return metFault{kindByName(f.Kind), f, s.released}
}

// ServeHTTP is the server.
func (s *Sandbox) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	o := s.Options()
	if r.URL.Path == o.BasePath+CapsulePath {
		s.serveCapsule(w, r)
		return
	}
	route := o.route(r)
	x := &exchange{s: s, o: o, w: w, r: r, route: route, met: metFault{kind: &kind{}}}
	x.rec = s.book.open(r, route)
	defer x.close()

	// Whoever reckons with expire_date does so by the server's clock.
	w.Header().Set("Date", o.Clock().UTC().Format(http.TimeFormat))
	if !o.hostAllowed(r.Host) {
		x.send(htmlAnswer(http.StatusBadRequest, "Bad Request (400)"))
		return
	}
	switch route {
	case OnFolders:
		x.only(http.MethodPost, x.folders)
	case OnBiometry:
		x.only(http.MethodPost, x.biometry)
	case OnToken:
		x.only(http.MethodGet, x.token)
	case OnAuth:
		x.only(http.MethodPost, x.login)
	case OnRefresh:
		x.only(http.MethodPost, x.refresh)
	case routeVersion:
		x.only(http.MethodGet, x.version)
	case routeElsewhere:
		x.send(x.elsewhere())
	default:
		x.send(errorAnswer(http.StatusNotFound, 10, "Not found"))
	}
}

// Calls that a fault cannot be aimed at; the others are OnFolders and so on.
const (
	routeVersion   = "version"
	routeElsewhere = "elsewhere"
	routeUnknown   = "unknown"
)

// route names the call that a request makes.
func (o Options) route(r *http.Request) string {
	path, ok := strings.CutPrefix(r.URL.Path, o.BasePath)
	if !ok {
		return routeUnknown
	}
	same := func(want string) bool {
		if o.StrictSlash {
			return path == want
		}
		return strings.TrimSuffix(path, "/") == strings.TrimSuffix(want, "/")
	}
	switch {
	case same(FoldersPath) && r.Method == http.MethodPost && isOf(r, "multipart/form-data"):
		return OnBiometry
	case same(FoldersPath):
		return OnFolders
	case same(TokenPath):
		return OnToken
	case same(AuthPath) && len(o.Accounts) > 0:
		return OnAuth
	case same(RefreshPath) && len(o.Accounts) > 0:
		return OnRefresh
	case same(VersionPath):
		return routeVersion
	case path == ElsewherePath:
		return routeElsewhere
	}
	return routeUnknown
}

func (o Options) hostAllowed(host string) bool {
	if len(o.AllowedHosts) == 0 {
		return true
	}
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	return slices.ContainsFunc(o.AllowedHosts, func(allowed string) bool { return strings.EqualFold(allowed, host) })
}
