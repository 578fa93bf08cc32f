package caddymodule

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/dustin/go-humanize"
	"go.uber.org/zap"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/ozclient"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/seal"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/upload"
)

// Handler sends each OzCapsula that is POSTed to the matched path to Oz API
// Instant, byte for byte, reads the decision out of the answer, and passes the
// same request to the next handler with the answer, less its best shot, as the
// body and the decision in trusted header fields:
//
// Header | Value
// -------|------
// `X-Oz-Decision` | `SUCCESS`, `DECLINED`, `OPERATOR_REQUIRED`, `FAILED`; with `pass` also `INVALID`, `UNAVAILABLE`. Absent: nothing was decided
// `X-Oz-Reason` | why, for any decision but the first three
// `X-Oz-Folder-Id`, `X-Oz-Event-Session-Id` | Oz's ids of the request and of the user's session
// `X-Oz-Resolution-Status`, `X-Oz-System-Resolution` | the two fields of the folder that the vendor's guide decides by
// `X-Oz-Quality`, `X-Oz-Biometry` | the status of that analysis, the worst if there are several
// `X-Oz-Error-Code` | Oz's error code
// `X-Oz-Best-Shot` | with `best_shot` `attach`: `attached`, `absent` or `unusable`
// `X-Oz-Seal` | with `seal`: the above, signed
//
// From every request, matched or not, the handler removes each header field and
// trailer whose name an app server could take for one of these (lower-cased,
// with every character but letters and digits read as `-`, it begins with
// `x-oz-`). Put it before any handler that reads them. An `Upgrade` survives
// only on requests other than POST, and only as `websocket`: any other protocol
// that the app switched to would be a tunnel past these rules.
//
// It sets these placeholders, which are empty on undecided requests:
//
// Placeholder | Description
// ------------|------------
// `{http.oz_instant.decision}` | as `X-Oz-Decision`
// `{http.oz_instant.reason}` | as `X-Oz-Reason`
// `{http.oz_instant.folder_id}` | as `X-Oz-Folder-Id`
// `{http.oz_instant.event_session_id}` | as `X-Oz-Event-Session-Id`
// `{http.oz_instant.resolution_status}` | as `X-Oz-Resolution-Status`
// `{http.oz_instant.system_resolution}` | as `X-Oz-System-Resolution`
// `{http.oz_instant.quality}` | as `X-Oz-Quality`
// `{http.oz_instant.biometry}` | as `X-Oz-Biometry`
// `{http.oz_instant.error_code}` | as `X-Oz-Error-Code`
// `{http.oz_instant.best_shot}` | as `X-Oz-Best-Shot`
// `{http.oz_instant.capsule_bytes}` | size of the capsule
// `{http.oz_instant.oz_ms}` | milliseconds from the capsule's last byte to Oz's whole answer, and of a log-in before it
type Handler struct {
	// The requests that carry capsules, as in a route. A POST that matches is
	// a capsule or is refused; GET, HEAD and OPTIONS without content continue
	// undecided. Default: all requests. The header fields above are removed
	// from every request, whether it matches or not.
	MatcherSetsRaw caddyhttp.RawMatcherSets `json:"match,omitempty" caddy:"namespace=http.matchers"`

	ozclient.Config

	// Where session tokens are served. Default: nowhere.
	SessionToken *SessionToken `json:"session_token,omitempty"`

	// The largest capsule accepted, in bytes. Larger ones are refused with
	// 413: by their Content-Length before a byte is read, or else where the
	// limit is passed. Default: 33554432 (32 MiB).
	MaxCapsule int64 `json:"max_capsule,omitempty"`

	// The longest answer read from Oz, in bytes, best shots included. A longer
	// one isn't a decision (`malformed_answer`). After the best shot has been
	// cut out, at most 1 MiB may remain, or with `best_shot` `keep` this much:
	// such an answer is held whole and copied while the app's body is put
	// together, which takes up to six times as much memory.
	// Default: 67108864 (64 MiB).
	MaxAnswer int64 `json:"max_answer,omitempty"`

	// The most bytes that the header of a capsule's request may have, request
	// line included. A larger header, or one of more than 100 field lines, is
	// refused with 431: app servers drop or refuse what is beyond limits of
	// their own (Node: 1,000 lines, 16 KiB), and would so never see the
	// decision. Caddy itself refuses headers over the server's
	// `max_header_bytes`, 16 KiB by default. Default: 12288 (12 KiB).
	MaxHeader int64 `json:"max_header,omitempty"`

	// The most time that is spent waiting for the bytes of one upload. Then:
	// 408, no decision. Whatever it says, an upload ends with 408 when it
	// stalls for 10 seconds or stays under 4 KiB a second. Default: `2m`.
	UploadTimeout caddy.Duration `json:"upload_timeout,omitempty"`

	// How long Oz has from the capsule's last byte to the last byte of its
	// answer. Then: `UNAVAILABLE`, `timeout`. Default: `60s`.
	Timeout caddy.Duration `json:"timeout,omitempty"`

	// What happens to the best shot, the large base64 image in the answer:
	// `strip` cuts it out while the answer flows; `keep` leaves it in the app's
	// body; `attach` cuts it out, decodes it, and makes the app's body a
	// `multipart/form-data` with the part `folder` (application/json) and the
	// parts `best_shot`, `best_shot_2`, … (image/jpeg), one for each image. The
	// header `X-Oz-Best-Shot` then says `attached`; `absent` if Oz sent no
	// image; or `unusable` if what it sent isn't base64 of a JPEG, which does
	// not touch the decision. `keep` and `attach` hold the images in memory.
	// Only images where the guide has them are cut
	// (`analyses[*].results_media[*].output_images[*].image_b64`).
	// Default: `strip`.
	BestShot string `json:"best_shot,omitempty"`

	// More fields to take out of the folder that the app gets, as paths of
	// names, indices and `#` (every element) with dots between them:
	// `media.#.original_name`. A field that is absent is not an error. The
	// decision is made before.
	Strip []string `json:"strip,omitempty"`

	// The analyses that must have finished with SUCCESS before anything is a
	// SUCCESS: `quality` (liveness), `biometry` (face matching), or `none`
	// alone. The vendor's guide decides by the two top-level fields; this is
	// stricter, because the device chooses which analyses run.
	// Default: `quality`.
	Analyses []string `json:"analyses,omitempty"`

	// What the folder must carry, else the decision is `INVALID`, `binding`:
	// it ties a capsule to the user who is signed in.
	Require []Requirement `json:"require,omitempty"`

	// Decisions to pass to the app that are refusals otherwise: `INVALID`,
	// `UNAVAILABLE`. Its body is then the problem document. Default: none.
	Pass []string `json:"pass,omitempty"`

	// Routes for certain decisions. A request that no handler in them answers
	// continues to the app; with routes that do nothing it is the same as `pass`.
	HandleDecision []DecisionRoutes `json:"handle_decision,omitempty"`

	// Face matching: after a liveness SUCCESS, the best shot is compared with a
	// photo of the user that the app has (the guide's step 4). Default: none.
	Biometry *Biometry `json:"biometry,omitempty"`

	// How much work Oz gets at once, and how long capsules may wait for it.
	// Default: no limit.
	Capacity *Capacity `json:"capacity,omitempty"`

	// Makes a capsule count once. Default: none; only Oz looks for capsules
	// that were used before.
	ReplayGuard *ReplayGuard `json:"replay_guard,omitempty"`

	// A signed proof of the decision for the app. Default: none.
	Seal *Seal `json:"seal,omitempty"`

	// What a client that leaves ends. `finish`: only an unfinished upload; once
	// the capsule is complete it is analysed and the app gets the decision, and
	// has 30 seconds for it. `cancel`: everything, at once. Default: `finish`.
	ClientGone string `json:"client_gone,omitempty"`

	matchers      caddyhttp.MatcherSets // of capsules
	tokenMatchers caddyhttp.MatcherSets // of session tokens
	policy        oz.Policy
	capsulePaths  []string
	within        []any
	stripPaths    []oz.Path
	requirePaths  []oz.Path
	client        *ozclient.Client
	gate          *upload.Gate
	way           *wayUser
	metrics       *metrics
	events        events
	logger        *zap.Logger
}

// SessionToken makes the handler answer a GET with a fresh session token from
// Oz, which the vendor's SDK needs before each capture (the guide's step 1):
//
//	{"session_token": "…"}
//
// The token is not cached and not logged. A call that fails is tried once more,
// on another upstream if there is one; then the answer is a problem document.
// HEAD is answered without asking Oz; OPTIONS without content, such as a
// browser's preflight, continues to the next handler; other methods are refused
// with 405. At most 16 tokens are asked for at once for one Oz, and 64 more
// requests wait; the others get 503 with Retry-After.
//
// The handler's matchers other than `path`, `path_regexp` and `method` hold for
// session tokens, too. Next to `expression` and `not`, in which they cannot be
// told apart, the config does not load.
type SessionToken struct {
	// The path, such as `/session_token`. It must not be one of the capsules'.
	// Required.
	Path string `json:"path"`

	// How long Oz has for its answer, in each of two attempts. Default: `5s`.
	Timeout caddy.Duration `json:"timeout,omitempty"`
}

// Requirement is a value that the folder must carry.
type Requirement struct {
	// Where in the folder: names, indices and `#` (every element, and at least
	// one) with dots between them, such as `meta_data.transaction_id`.
	Path string `json:"path"`

	// The value that must stand there, usually a placeholder such as
	// `{http.request.cookie.transaction}`. A value that turns out empty never
	// holds. A cookie is compared as it was sent, percent-encoding included.
	Value string `json:"value"`
}

// DecisionRoutes are routes for certain decisions.
type DecisionRoutes struct {
	// The decisions: `SUCCESS`, `DECLINED`, `OPERATOR_REQUIRED`, `FAILED`,
	// `INVALID`, `UNAVAILABLE`. Each at most once in all of `handle_decision`.
	Decisions []string `json:"decisions"`

	// The routes. A request that none of them answers continues to the app.
	Routes caddyhttp.RouteList `json:"routes,omitempty"`
}

// Biometry is face matching: step 4 of the vendor's guide. It runs after a
// liveness SUCCESS and no other decision. The best shot (of QUALITY, and the
// first usable one, should there be several) and a reference photo of the user
// go to Oz in a call of their own, and the worse of the two results decides.
// The app's body is then
//
//	{"liveness": <folder>, "biometry": <folder or null>}
//
// and `X-Oz-Biometry` is set.
type Biometry struct {
	// Where the app has the reference photo, as a path with an optional query,
	// such as `/profile/photo`. It is fetched inside Caddy, by a GET to the
	// handlers after this one, with the header of the request that brought the
	// capsule: the user's own cookies decide whose photo it is. Placeholders
	// are allowed; a value stays one segment of the path. JPEG and PNG are
	// accepted. The app answers 404 when it has no photo. Never build it from
	// anything that the visitor controls. Required.
	Reference string `json:"reference"`

	// The tag of both images at Oz. Default: `photo_selfie`.
	Tag string `json:"tag,omitempty"`

	// The largest reference photo accepted, in bytes. Default: 10485760 (10 MiB).
	MaxReference int64 `json:"max_reference,omitempty"`
}

// Seal gives the app a proof of the decision: the header `X-Oz-Seal` of every
// decided request is a compact JWS (RFC 7515) by ES256, of the type
// `oz-seal+jwt`, which any JWT library verifies. An app that does so needs no
// trust in the network between Caddy and itself.
//
// Its claims are `iss`, `aud`, `sub`, `iat`, `exp`, `jti` (unique), `htm` and
// `path` (of the request line as the client sent it); each header field above
// under the name of its placeholder, such as `decision`, absent where the field
// is; and `folder_sha256`, the SHA-256 of the folder as the app gets it, in
// lower-case hex: of the body, or with `best_shot` `attach` of the part
// `folder`. Until it expires, a copied request is as good as the first: an app
// should take each `jti` once.
type Seal struct {
	// Whom the seal is for, as the app knows itself, such as
	// `https://app.example.com`. The app must compare it, or a seal of another
	// app would do. It is a fixed text and never the request's Host. Required.
	Audience string `json:"audience"`

	// Who made the seal. Default: `oz_instant`.
	Issuer string `json:"issuer,omitempty"`

	// Whom the decision is about, usually a placeholder such as
	// `{http.auth.user.id}`. If a part of it is empty or unknown, if it has
	// control characters or more than 256 bytes, there is no `sub`. Default: none.
	Subject string `json:"subject,omitempty"`

	// How long the seal is valid, in whole seconds. Default: `60s`.
	Lifetime caddy.Duration `json:"lifetime,omitempty"`

	// Files with the keys: PEM of a P-256 key, as PKCS#8 or SEC1, without a
	// passphrase. The first signs, and all are published: a new key is put
	// last, first after ten minutes, and the old one is taken out when its last
	// seal has expired. They are read when the config is loaded. Default: one
	// key, made once and kept in Caddy's storage (`oz_instant/seal.pem`), which
	// all gateways with this storage use.
	Key []string `json:"key,omitempty"`

	// Where the keys are published, as a JWK set (RFC 7517), whatever the
	// matcher says. Only GET and HEAD are answered.
	// Default: `/.well-known/oz-instant/jwks.json`.
	JWKS string `json:"jwks,omitempty"`

	keys *seal.Keys
}

const (
	defaultMaxCapsule     = 32 << 20
	defaultMaxAnswer      = 64 << 20
	defaultMaxHeader      = 12 << 10
	defaultUploadTimeout  = caddy.Duration(2 * time.Minute)
	defaultTimeout        = caddy.Duration(60 * time.Second)
	defaultSessionTimeout = caddy.Duration(5 * time.Second)
	defaultTag            = "photo_selfie"
	defaultMaxReference   = 10 << 20
	defaultWait           = caddy.Duration(15 * time.Second)
	defaultIssuer         = "oz_instant"
	defaultLifetime       = caddy.Duration(60 * time.Second)
	defaultJWKS           = "/.well-known/oz-instant/jwks.json"

	// unboundedQueue is the queue without slots: limited by memory alone.
	unboundedQueue = 1 << 20

	bestShotStrip  = "strip"
	bestShotKeep   = "keep"
	bestShotAttach = "attach"

	clientGoneFinish = "finish"
	clientGoneCancel = "cancel"

	analysesNone = "none"
)

// setDefaults fills in what the config leaves out.
func (h *Handler) setDefaults() {
	setDefault(&h.MaxCapsule, defaultMaxCapsule)
	setDefault(&h.MaxAnswer, defaultMaxAnswer)
	setDefault(&h.MaxHeader, defaultMaxHeader)
	setDefault(&h.UploadTimeout, defaultUploadTimeout)
	setDefault(&h.Timeout, defaultTimeout)
	setDefault(&h.BestShot, bestShotStrip)
	setDefault(&h.ClientGone, clientGoneFinish)
	if len(h.Analyses) == 0 {
		h.Analyses = []string{"quality"}
	}
	if h.SessionToken != nil {
		setDefault(&h.SessionToken.Timeout, defaultSessionTimeout)
	}
	if b := h.Biometry; b != nil {
		setDefault(&b.Tag, defaultTag)
		setDefault(&b.MaxReference, defaultMaxReference)
	}
	if h.ReplayGuard != nil {
		h.ReplayGuard.setDefaults()
	}
	if s := h.Seal; s != nil {
		setDefault(&s.Issuer, defaultIssuer)
		setDefault(&s.Lifetime, defaultLifetime)
		setDefault(&s.JWKS, defaultJWKS)
	}
	if c := h.Capacity; c != nil {
		setDefault(&c.Wait, defaultWait)
		if c.Queue == nil {
			queue := 4 * c.Slots
			if c.Slots == 0 {
				queue = unboundedQueue
			}
			c.Queue = &queue
		}
	}
}

// copyParts gives h parts of its own, which setDefaults may fill in.
func (h *Handler) copyParts() {
	h.SessionToken, h.Biometry, h.Capacity, h.Seal = copied(h.SessionToken), copied(h.Biometry), copied(h.Capacity), copied(h.Seal)
	h.ReplayGuard = copied(h.ReplayGuard)
}

func copied[T any](part *T) *T {
	if part == nil {
		return nil
	}
	c := *part
	return &c
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// optionError names the option that a rule was broken by, as the Caddyfile has
// it, so that the Caddyfile can add its line.
type optionError struct {
	option string // such as "capacity slots"
	nth    int    // which of several, for options that may be repeated
	err    error
}

func (e *optionError) Error() string {
	return strings.ReplaceAll(e.option, " ", ": ") + ": " + e.err.Error()
}
func (e *optionError) Unwrap() error { return e.err }

// invalid returns an optionError, or nil without an error.
func invalid(option string, err error) error { return invalidNth(option, 0, err) }

func invalidNth(option string, nth int, err error) error {
	if err == nil {
		return nil
	}
	return &optionError{option, nth, err}
}

// Validate implements caddy.Validator: every rule of the config is checked here
// and nowhere else. It needs setDefaults, and nothing that Provision makes:
// Provision calls it first, before anything is shared with other handlers, and
// the Caddyfile calls it to say which line is wrong. Caddy asks once more after
// Provision, which has consumed parts of the config.
func (h *Handler) Validate() error {
	if h.client != nil {
		return nil
	}
	for _, err := range []error{
		h.Config.Validate(), h.validateNumbers(), h.validateWords(), h.SessionToken.validate(h.MatcherSetsRaw),
		validateRequirements(h.Require), validateDecisions(h.Pass, h.HandleDecision), h.Biometry.validate(), h.Capacity.validate(h.MaxCapsule),
		h.ReplayGuard.validate(),
		h.Seal.validate(h.MatcherSetsRaw, h.SessionToken),
	} {
		if err != nil {
			return err
		}
	}
	return nil
}

var errNotPositive = errors.New("must be greater than zero")

func (h *Handler) validateNumbers() error {
	for _, field := range []struct {
		option string
		value  int64
	}{
		{"max_capsule", h.MaxCapsule},
		{"max_answer", h.MaxAnswer},
		{"max_header", h.MaxHeader},
		{"upload_timeout", int64(h.UploadTimeout)},
		{"timeout", int64(h.Timeout)},
	} {
		if field.value <= 0 {
			return invalid(field.option, errNotPositive)
		}
	}
	return nil
}

func (h *Handler) validateWords() error {
	if err := invalid("best_shot", oneOf(h.BestShot, bestShotStrip, bestShotKeep, bestShotAttach)); err != nil {
		return err
	}
	if err := invalid("client_gone", oneOf(h.ClientGone, clientGoneFinish, clientGoneCancel)); err != nil {
		return err
	}
	if _, err := analysisTypes(h.Analyses); err != nil {
		return invalid("analyses", err)
	}
	_, err := parsePaths(h.Strip)
	return invalid("strip", err)
}

// oneOf requires word to be one of words.
func oneOf(word string, words ...string) error {
	if slices.Contains(words, word) {
		return nil
	}
	return fmt.Errorf("invalid value %q (want %s)", word, orList(words))
}

// orList lists words as a sentence has them: "a, b or c".
func orList(words []string) string {
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

// analysisTypes returns Oz's words for the analyses in the config.
func analysisTypes(names []string) ([]string, error) {
	if slices.Equal(names, []string{analysesNone}) {
		return nil, nil
	}
	var types []string
	for _, name := range names {
		switch name {
		case "quality":
			types = append(types, oz.Quality)
		case "biometry":
			types = append(types, oz.Biometry)
		case analysesNone:
			return nil, errors.New("none cannot be combined with other values")
		default:
			return nil, fmt.Errorf("invalid value %q (want quality, biometry or none)", name)
		}
	}
	return types, nil
}

func parsePaths(texts []string) ([]oz.Path, error) {
	var paths []oz.Path
	for _, text := range texts {
		path, err := oz.ParsePath(text)
		if err != nil {
			return nil, err
		}
		paths = append(paths, path)
	}
	return paths, nil
}

func (s *SessionToken) validate(matchers caddyhttp.RawMatcherSets) error {
	if s == nil {
		return nil
	}
	if !plainPath(s.Path) {
		return invalid("session_token", fmt.Errorf("invalid path %q (want a plain path such as /session_token)", s.Path))
	}
	if s.Timeout <= 0 {
		return invalid("session_token timeout", errNotPositive)
	}
	return invalid("session_token", checkTokenMatchers(matchers, s.Path))
}

// bodyPlaceholder reads the whole capsule into a text.
const bodyPlaceholder = "{http.request.body"

func validateRequirements(requirements []Requirement) error {
	seen := make(map[string]bool)
	for i, req := range requirements {
		if err := invalidNth("require", i, req.validate(seen)); err != nil {
			return err
		}
		seen[req.Path] = true
	}
	return nil
}

func (r Requirement) validate(seen map[string]bool) error {
	if _, err := oz.ParsePath(r.Path); err != nil {
		return err
	}
	switch {
	case seen[r.Path]:
		return fmt.Errorf("%s is already required", r.Path)
	case r.Value == "":
		return fmt.Errorf("%s: the value is empty and could never hold", r.Path)
	case strings.Contains(r.Value, bodyPlaceholder):
		return fmt.Errorf("%s: the capsule itself cannot be the value", r.Path)
	}
	return nil
}

func validateDecisions(pass []string, routes []DecisionRoutes) error {
	for _, d := range pass {
		if err := invalid("pass", checkPass(d)); err != nil {
			return err
		}
	}
	seen := make(map[string]bool)
	for i, dr := range routes {
		if err := invalidNth("handle_decision", i, dr.validate(seen)); err != nil {
			return err
		}
	}
	return nil
}

func (dr DecisionRoutes) validate(seen map[string]bool) error {
	if len(dr.Decisions) == 0 {
		return errors.New("no decisions (want at least one)")
	}
	for _, d := range dr.Decisions {
		if err := checkDecision(d); err != nil {
			return err
		}
		if seen[d] {
			return fmt.Errorf("%s already has routes", d)
		}
		seen[d] = true
	}
	return nil
}

func checkDecision(s string) error {
	var words []string
	for _, d := range oz.Decisions() {
		words = append(words, string(d))
	}
	return oneOf(s, words...)
}

func checkPass(s string) error {
	if err := checkDecision(s); err != nil {
		return err
	}
	if reachesApp(oz.Decision(s)) {
		return fmt.Errorf("%s is always passed to the app; only INVALID and UNAVAILABLE can be listed", s)
	}
	return nil
}

func (b *Biometry) validate() error {
	if b == nil {
		return nil
	}
	switch {
	case b.Reference == "":
		return invalid("biometry", errors.New("no reference (for example: reference /profile/photo)"))
	case !strings.HasPrefix(b.Reference, "/"), strings.HasPrefix(b.Reference, "//"), strings.ContainsAny(b.Reference, "# \\"):
		return invalid("biometry reference", fmt.Errorf("invalid path %q (want a path of the app such as /profile/photo)", b.Reference))
	case b.Tag == "" || headerValue(b.Tag) == "":
		return invalid("biometry tag", fmt.Errorf("invalid tag %q (want a word such as photo_selfie)", b.Tag))
	case b.MaxReference <= 0:
		return invalid("biometry max_reference", errNotPositive)
	}
	return nil
}

// sizeString formats a size as the Caddyfile has it.
func sizeString(n int64) string { return humanize.IBytes(uint64(n)) }
