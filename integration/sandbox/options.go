package sandbox

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"
)

// Paths the sandbox serves, to be put after Options.BasePath.
const (
	TokenPath   = "/api/authorize/session_token"
	FoldersPath = "/api/instant/folders/"
	VersionPath = "/api/version"

	// These two are there when Options.Accounts holds somebody.
	AuthPath    = "/api/authorize/auth/"
	RefreshPath = "/api/authorize/refresh/"

	// ElsewherePath is where redirects of the fault "status:302" point. Whoever follows gets a folder that says SUCCESS,
	// so that following is noticed.
	ElsewherePath = "/elsewhere"
)

// Values for Options.Overflow.
const (
	OverflowQueue  = "queue"
	OverflowRefuse = "503"
)

// Options are the switches. The zero value is the documented behaviour, or the most likely one where documents are silent.
type Options struct {
	// KeysDir is a folder like API_KEYS_DIR of the real one: jwt.key (a P-384 private key, PKCS#8 PEM) and jwt.pub (its
	// public half, PEM), which session tokens are signed with. Empty: a fresh key pair. Read once, by New.
	KeysDir string

	// TokenLife is how long a session token is good for. Default: 900 s.
	TokenLife time.Duration

	// Clock is what session tokens, sessions, time stamps and the Date of answers go by; tests turn it. Default: time.Now.
	Clock func() time.Time

	// ReuseTokens forgets which session tokens were used. Default: a second capsule with the same token is refused with
	// code 14. The real one promises that a token "prevents replay" and does not say how.
	ReuseTokens bool

	// AcceptAny takes every body that is not a sandbox capsule for a good one, with outcome SUCCESS: for load generators
	// that can only send noise. Default: noise is refused with code 14.
	AcceptAny bool

	// AccessToken, when set, must come in X-Forensic-Access-Token (folders and session_token): 401 with code 6 without it, code 7
	// when it is another one. Default: not asked for.
	AccessToken string

	// Accounts, when there are any, are the passwords by e-mail address. They log in for an access token, which is then asked
	// for as above; AccessToken, if set, is as good as one. 401 with code 6 without a token, 7 with an unknown one and 8 when
	// its session has ended; 403 with code 9 when it is forbidden (see ForbidSessions). Taking an account away ends no
	// session. Default: no accounts, and no auth component: its paths answer 404.
	Accounts map[string]string

	// SessionLife is how long a session lasts after a log-in or a refresh. Default: 15 min; service accounts have 5 years.
	SessionLife time.Duration

	// FixedExpiry keeps the end of a session where it is. Default: each use of a token moves it to SessionLife from then.
	FixedExpiry bool

	// AllowedHosts, when set, are the Host names (without port) that are served, as with APP_ALLOWED_HOSTS: any other gets
	// 400 and a HTML page. Default: every Host.
	AllowedHosts []string

	// BasePath stands before every path, as when {{host}} has a path. Default: none.
	BasePath string

	// StrictSlash serves only the guide's spelling of paths: folders/ with a slash at the end, the others without.
	// Default: both spellings.
	StrictSlash bool

	// LegacyMessages answers codes 13 and 14 with the texts of the oldest documents, which tell causes apart.
	// Default: always "Invalid request data".
	LegacyMessages bool

	// NoEcho leaves the app's own metadata out of the folder; a capsule's event_session_id stays. Default: echoed.
	NoEcho bool

	// BestShotSize is the length of image_b64 in characters. The image is padded to it and stays a JPEG that decodes.
	// Default (0): as small as a face of 240 x 320 is, about 10 KB.
	BestShotSize int64

	// AnalysisTime is how long an analysis takes, counted from the last byte of the capsule. It runs its time even when the
	// client has left. Default: none; the real one takes about 3 s.
	AnalysisTime time.Duration

	// Parallel is how many capsules, and sets of images to match, are served at once. Each counts from its header until its
	// answer is ready, so a slow upload holds its place. Default (0): no limit; the real one does 2 or 3.
	Parallel int

	// Overflow says what happens to capsules beyond Parallel: OverflowQueue (the default) lets them wait, first come first
	// served, unread; OverflowRefuse answers 503 with Retry-After: 1 at once.
	Overflow string

	// SlotAfterUpload counts a capsule against Parallel only once it is in whole, as when a proxy that buffers stands before
	// the real one. Default: from its header on.
	SlotAfterUpload bool

	// MaxCapsule refuses larger bodies with 413 as a web server in front would: by Content-Length before reading, otherwise
	// as soon as they pass it. Default (0): no limit.
	MaxCapsule int64

	// MaxImage refuses larger parts of a face matching request with code 4. Default: 10 MB, as in old documents.
	MaxImage int64

	// FewMediaFail answers a face matching request with fewer than two usable images 201 and a FAILED folder. Default: 400
	// with code 4. The vendor says "error" and not which.
	FewMediaFail bool

	// OperatorFrom leads to OPERATOR_REQUIRED in face matching when the likeness is at least this and less than Threshold.
	// Two persons made up at random are nearly always 0.01 to 0.3 alike; without a face it is 0. Default (0): never.
	OperatorFrom float64

	// KeepReceipts is how many requests Received and Requests remember; older ones are forgotten. Default (0): 10,000.
	// Set by New.
	KeepReceipts int

	// Fault makes things go wrong. Default: nothing does.
	Fault Fault

	// Logger gets a line for each request. Default: nothing is logged.
	Logger *slog.Logger
}

// withDefaults fills in what New and SetOptions promise, and says what cannot be meant.
func (o Options) withDefaults() (Options, error) {
	if o.TokenLife == 0 {
		o.TokenLife = 900 * time.Second
	}
	if o.SessionLife == 0 {
		o.SessionLife = 15 * time.Minute
	}
	if o.MaxImage == 0 {
		o.MaxImage = 10_000_000
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Overflow == "" {
		o.Overflow = OverflowQueue
	}
	if o.KeepReceipts == 0 {
		o.KeepReceipts = 10_000
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	o.BasePath = strings.TrimSuffix(o.BasePath, "/")
	o.Accounts = maps.Clone(o.Accounts)
	_, nameless := o.Accounts[""]

	switch {
	case nameless || slices.Contains(slices.Collect(maps.Values(o.Accounts)), ""):
		return o, fmt.Errorf("an account without an email or a password")
	case o.OperatorFrom < 0 || o.OperatorFrom > Threshold:
		return o, fmt.Errorf("likeness %v is not between 0 and %v", o.OperatorFrom, Threshold)
	case o.Overflow != OverflowQueue && o.Overflow != OverflowRefuse:
		return o, fmt.Errorf("overflow is %q: want %q or %q", o.Overflow, OverflowQueue, OverflowRefuse)
	case o.BasePath != "" && !strings.HasPrefix(o.BasePath, "/"):
		return o, fmt.Errorf("base path %q does not begin with a slash", o.BasePath)
	case o.TokenLife < 0, o.SessionLife < 0, o.AnalysisTime < 0, o.BestShotSize < 0, o.Parallel < 0, o.MaxCapsule < 0,
		o.MaxImage < 0, o.KeepReceipts < 0:
		return o, fmt.Errorf("sizes, counts and durations must not be negative")
	}
	f, err := o.Fault.withDefaults()
	if err != nil {
		return o, err
	}
	o.Fault = f
	return o, nil
}
