package sandbox

import (
	"crypto/hmac"
	cryptorand "crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"slices"
	"time"
)

// CapsuleKey signs capsule headers. It is published on purpose: a test key, and no secret.
const CapsuleKey = "oz_instant sandbox capsules: a test key, not a secret"

const (
	capsuleMagic     = "OZSANDB1"
	maxCapsuleHeader = 1 << 20
	signatureSize    = sha256.Size
	hashSize         = sha256.Size

	// DefaultPayloadSize is the size of the media of a capsule that does not say.
	DefaultPayloadSize = 64 << 10
)

// Outcomes that a capsule can ask for.
const (
	Success          = "SUCCESS"
	Declined         = "DECLINED"
	Failed           = "FAILED"
	OperatorRequired = "OPERATOR_REQUIRED"
)

// Outcomes lists them.
func Outcomes() []string { return []string{Success, Declined, Failed, OperatorRequired} }

// Damage is what is wrong with a capsule, named after what it is done to.
type Damage string

// The kinds of damage, with the error code each brings about.
const (
	NoDamage         Damage = ""
	DamageEmpty      Damage = "empty"       // 13: nothing at all, zero bytes
	DamageGarbled    Damage = "garbled"     // 14: noise, not a capsule
	DamageCut        Damage = "cut"         // 14: the second half is missing
	DamageForged     Damage = "forged"      // 14: the header was changed after signing
	DamageHash       Damage = "hash"        // 14: a byte of the media was changed after hashing
	DamageToken      Damage = "token"       // 14: a session token this sandbox did not sign
	DamageExpired    Damage = "expired"     // 14: a session token past its time
	DamageEmptyToken Damage = "empty-token" // 14: no session token inside
	DamagePayload    Damage = "payload"     // 3: no payload
	DamageMedia      Damage = "media"       // 4: no media
	DamageDamaged    Damage = "damaged"     // 5: a medium does not fit its checksum; signature and hash are in order
)

// Damages lists them, with the error code that Oz answers to each.
func Damages() map[Damage]int {
	return map[Damage]int{
		DamageEmpty: 13, DamageGarbled: 14, DamageCut: 14, DamageForged: 14, DamageHash: 14, DamageToken: 14,
		DamageExpired: 14, DamageEmptyToken: 14, DamagePayload: 3, DamageMedia: 4, DamageDamaged: 5,
	}
}

// CapsuleSpec says what a capsule is to hold. The zero value is a good capsule that ends in SUCCESS.
type CapsuleSpec struct {
	// SessionToken is the token inside. Empty: Sandbox.Capsule puts in a fresh one; BuildCapsule refuses.
	SessionToken string

	// Outcome is how its analysis ends. Default: SUCCESS.
	Outcome string

	// Person is who was in front of the camera, and is to be seen in the best shot: see Portrait. Default: somebody without
	// a name.
	Person string

	// Media is how many media there are. Default: 1.
	Media int

	// PayloadSize is the size of all media together, in bytes. Default: DefaultPayloadSize. They are random.
	PayloadSize int64

	// Payload is the media, byte for byte, where a test wants to find them again. Default: PayloadSize random bytes.
	Payload []byte

	// Meta is the app's metadata, echoed in the folder's meta_data.
	Meta map[string]string

	// EventSession is the front end's session, echoed as meta_data.event_session_id. Default: a fresh UUID.
	EventSession string

	// Damage is what is wrong with it. Default: nothing.
	Damage Damage

	// Fault is what goes wrong at the sandbox with this capsule and no other, as text; see Fault. It must be one that takes hold
	// after the capsule was read, and is met by a good capsule only. A fault of the sandbox itself comes first.
	Fault string
}

// capsule is the header as it is written.
type capsule struct {
	SessionToken string   `json:"session_token"`
	Size         int64    `json:"size"`
	Payload      *payload `json:"payload"`
	Media        []medium `json:"media"`

	damaged  bool // found while reading: a medium does not fit
	unsigned bool // noise that Options.AcceptAny lets in
}

type payload struct {
	Outcome      string            `json:"outcome"`
	Person       string            `json:"person,omitempty"`
	EventSession string            `json:"event_session_id"`
	Meta         map[string]string `json:"meta_data,omitempty"`
	Fault        string            `json:"fault,omitempty"`
}

type medium struct {
	Name string   `json:"name"`
	Type string   `json:"type"`
	Tags []string `json:"tags"`
	Size int64    `json:"size"`
	CRC  uint32   `json:"crc32"`
}

// Capsule is MakeCapsule for specs written in source code. It panics when they make no sense.
func (s *Sandbox) Capsule(spec CapsuleSpec) []byte {
	c, err := s.MakeCapsule(spec)
	if err != nil {
		panic("sandbox capsule: " + err.Error())
	}
	return c
}

// MakeCapsule makes a capsule for this sandbox. It fails on a spec that makes no sense, such as an unknown outcome.
func (s *Sandbox) MakeCapsule(spec CapsuleSpec) ([]byte, error) {
	if spec.SessionToken == "" {
		o := s.Options()
		issued := o.Clock()
		if spec.Damage == DamageExpired {
			issued = issued.Add(-o.TokenLife - time.Second)
		}
		spec.SessionToken = s.keys.sign(issued, o.TokenLife)
	}
	return BuildCapsule(spec)
}

// BuildCapsule makes a capsule around the session token in spec. DamageExpired is then up to whoever made the token.
func BuildCapsule(spec CapsuleSpec) ([]byte, error) {
	if spec.Outcome == "" {
		spec.Outcome = Success
	}
	if spec.EventSession == "" {
		spec.EventSession = newUUID()
	}
	if spec.PayloadSize == 0 {
		spec.PayloadSize = DefaultPayloadSize
	}
	spec.Media = max(spec.Media, 1)
	_, known := Damages()[spec.Damage]
	switch {
	case !slices.Contains(Outcomes(), spec.Outcome):
		return nil, fmt.Errorf("unknown outcome %q: want one of %q", spec.Outcome, Outcomes())
	case spec.Damage != NoDamage && !known:
		return nil, fmt.Errorf("unknown damage %q", spec.Damage)
	case spec.PayloadSize < 0:
		return nil, fmt.Errorf("payload size %d", spec.PayloadSize)
	}
	if _, err := capsuleFault(spec.Fault); err != nil {
		return nil, err
	}

	content := spec.Payload
	if content == nil {
		content = randomBytes(spec.PayloadSize)
	}
	switch spec.Damage {
	case DamageEmpty:
		return []byte{}, nil
	case DamageGarbled:
		return randomBytes(max(int64(len(content)), 1)), nil
	case DamageToken:
		spec.SessionToken = "forged." + spec.SessionToken
	case DamageEmptyToken:
		spec.SessionToken = ""
	default:
		if spec.SessionToken == "" {
			return nil, fmt.Errorf("no session token")
		}
	}
	return seal(spec.header(content), content, spec.Damage)
}

// header describes the media and what is wanted of them.
func (spec CapsuleSpec) header(content []byte) capsule {
	c := capsule{
		SessionToken: spec.SessionToken,
		Size:         int64(len(content)),
		Payload: &payload{
			Outcome: spec.Outcome, Person: spec.Person, EventSession: spec.EventSession, Meta: spec.Meta, Fault: spec.Fault,
		},
		Media: []medium{},
	}
	for i := range spec.Media {
		part := content[len(content)*i/spec.Media : len(content)*(i+1)/spec.Media]
		m := medium{Name: "video_selfie_blank.mp4", Type: "VIDEO_FOLDER", Size: int64(len(part)), CRC: crc32.ChecksumIEEE(part)}
		if i%2 == 1 { // what a browser captures is an archive of frames
			m.Name, m.Type = "video_selfie_blank.zip", "SHOTS_SET_FOLDER"
		}
		m.Tags = []string{"video_selfie", "video_selfie_blank", "orientation_portrait"}
		c.Media = append(c.Media, m)
	}
	switch spec.Damage {
	case DamagePayload:
		c.Payload = nil
	case DamageMedia:
		c.Media = []medium{}
	case DamageDamaged:
		c.Media[len(c.Media)-1].CRC ^= 1
	}
	return c
}

// seal writes a capsule: magic, header, signature, media, hash.
func seal(c capsule, content []byte, damage Damage) ([]byte, error) {
	header, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	if len(header) > maxCapsuleHeader {
		return nil, fmt.Errorf("header of %d bytes, at most %d fit", len(header), maxCapsuleHeader)
	}
	out := make([]byte, 0, len(capsuleMagic)+4+len(header)+signatureSize+len(content)+hashSize)
	out = append(out, capsuleMagic...)
	out = binary.BigEndian.AppendUint32(out, uint32(len(header)))
	out = append(out, header...)
	out = append(out, sign(out)...)
	if damage == DamageForged {
		out[len(capsuleMagic)+4+len(header)-2] ^= 1
	}
	media := len(out)
	out = append(out, content...)
	sum := sha256.Sum256(out)
	out = append(out, sum[:]...)
	switch damage {
	case DamageHash:
		out[media] ^= 1
	case DamageCut:
		out = out[:len(out)/2]
	}
	return out, nil
}

func sign(b []byte) []byte {
	mac := hmac.New(sha256.New, []byte(CapsuleKey))
	mac.Write(b)
	return mac.Sum(nil)
}

// randomBytes are random and cheap: load tests want many. They are never secrets.
func randomBytes(n int64) []byte {
	var seed [32]byte
	cryptorand.Read(seed[:])
	b := make([]byte, n)
	rand.NewChaCha8(seed).Read(b)
	return b
}
