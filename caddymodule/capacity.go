package caddymodule

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/upload"
)

// Capacity limits how much work Oz gets at once. Oz does two or three analyses
// at once, of some three seconds each; any more make all of them slower.
// Capsules that find no slot wait unread, first come, first served: a phone
// sends its megabytes when its turn has come.
//
// Requests that cannot be served in time are refused before their capsule is
// read: 503, with a Retry-After estimated from recent analyses and the queue.
//
// All handlers with the same way to Oz (address, Host and other `header_up`,
// transport, `base_path`) share one capacity, in whatever site they are. The
// limits survive config reloads. Handlers in the same config must use the same
// values.
type Capacity struct {
	// How many analyses may run at once, over all upstreams. With several
	// upstreams it is the sum over them; `lb_policy least_conn` spreads them.
	// Default: no limit, which needs `memory`.
	Slots int `json:"slots,omitempty"`

	// How many capsules may wait beyond those in slots; with `memory`, uploads
	// in progress count, too. 0 is allowed: no capsule waits. Default: four
	// times `slots`.
	Queue *int `json:"queue,omitempty"`

	// How long a capsule may wait, not counting its own upload. Capsules
	// certain to wait longer are refused immediately. Default: `15s`.
	Wait caddy.Duration `json:"wait,omitempty"`

	// Memory for capsules, in bytes. With it, capsules are received whole
	// before they take a slot, so that a slow phone does not hold one; this is
	// the most that they hold together, and never less than `max_capsule`.
	// When it is full, clients are not read: the network holds them back.
	// When all places of `slots` and `queue` are taken, a new upload replaces
	// the slowest one that is silent for half a second or sends less than 32
	// KiB a second; that one gets 503. Have room for
	// (`slots` + `queue`) usual capsules; a chunked one counts as `max_capsule`
	// until it is complete. Nothing is written to a disk.
	// Default: none; capsules stream to Oz while they hold a slot.
	Memory int64 `json:"memory,omitempty"`

	// Counts `slots` and `queue` over all gateways that use the same store: a
	// module in the namespace `http.handlers.oz_instant.slots`, such as `redis`.
	// Gateways belong together if they name their upstreams, `base_path`, Host and
	// `tls_server_name` in the same way. The capsule that has waited longest goes
	// next, wherever it waits, and Retry-After takes all of them into account. Set
	// the same limits in each gateway; `memory` stays each gateway's own.
	//
	// A gateway that dies gives back its slots within five seconds. While the
	// store doesn't answer, each gateway continues with its share: `slots` and
	// `queue` divided by the gateways there were, and at least one slot. It says so
	// in the log, and in `GET /oz_instant/status`. Default: none.
	SharedRaw json.RawMessage `json:"shared,omitempty" caddy:"namespace=http.handlers.oz_instant.slots inline_key=module"`
}

// SlotStore counts slots over all gateways. A module in the namespace
// http.handlers.oz_instant.slots must implement it.
type SlotStore = upload.SlotStore

// SlotReport is what a gateway tells a [SlotStore].
type SlotReport = upload.SlotReport

// SlotTicket is one capsule in a [SlotReport].
type SlotTicket = upload.SlotTicket

// SlotAnswer is what a [SlotStore] answers.
type SlotAnswer = upload.SlotAnswer

const slotsNamespace = "http.handlers.oz_instant.slots"

func (c *Capacity) validate(maxCapsule int64) error {
	if c == nil {
		return nil
	}
	switch {
	case c.Slots < 0:
		return invalid("capacity slots", errNotPositive)
	case c.Slots == 0 && c.Memory == 0:
		return invalid("capacity", errors.New("set slots, memory, or both"))
	case c.Slots == 0 && c.SharedRaw != nil:
		return invalid("capacity shared", errors.New("needs slots, to count over all gateways"))
	case *c.Queue < 0:
		return invalid("capacity queue", errors.New("must not be less than zero"))
	case c.Wait <= 0:
		return invalid("capacity wait", errNotPositive)
	case c.Memory < 0:
		return invalid("capacity memory", errNotPositive)
	case c.Memory > 0 && c.Memory < upload.MinMemory(maxCapsule):
		return invalid("capacity memory", fmt.Errorf("%s cannot hold a capsule of max_capsule (want at least %s)",
			sizeString(c.Memory), sizeString(upload.MinMemory(maxCapsule))))
	}
	return nil
}

// openGate opens the gate of the way to Oz.
func (h *Handler) openGate(ctx caddy.Context, identity, installation string) (err error) {
	limits := h.Capacity.limits()
	if c := h.Capacity; c != nil && c.SharedRaw != nil {
		if limits.Shared, err = h.shared(ctx, installation); err != nil {
			return err
		}
	}
	if h.gate, err = upload.OpenGate(identity, configID(ctx), limits, h.metrics.gauges()); err != nil {
		return err
	}
	if c := h.Capacity; c != nil && c.Memory > 0 && c.Memory < int64(c.Slots)*h.MaxCapsule {
		h.logger.Warn("capacity: memory cannot hold a largest capsule for each slot; slots may idle while uploads wait for memory",
			zap.Int64("memory", c.Memory), zap.Int("slots", c.Slots), zap.Int64("max_capsule", h.MaxCapsule))
	}
	return nil
}

// shared loads the store of the slots. The room in it is named by a digest, so
// that it shows no addresses.
func (h *Handler) shared(ctx caddy.Context, installation string) (*upload.Shared, error) {
	config := string(h.Capacity.SharedRaw) // LoadModule takes it
	loaded, err := ctx.LoadModule(h.Capacity, "SharedRaw")
	if err != nil {
		return nil, fmt.Errorf("capacity shared: loading the store: %w", err)
	}
	store, ok := loaded.(SlotStore)
	if !ok {
		return nil, fmt.Errorf("capacity shared: %T is not a store of slots", loaded)
	}
	room := sha256.Sum256([]byte(installation))
	return &upload.Shared{
		Store: store, Config: config, Room: hex.EncodeToString(room[:16]), Lease: h.longestHold(), Logger: h.logger,
	}, nil
}

// longestHold returns the most that a capsule can hold a slot for.
func (h *Handler) longestHold() time.Duration {
	if h.Capacity.Memory > 0 {
		return h.longestAnalysis()
	}
	return h.longestAnalysis() + min(time.Duration(h.UploadTimeout), day)
}

func (c *Capacity) limits() upload.Capacity {
	if c == nil {
		return upload.Capacity{}
	}
	return upload.Capacity{Slots: c.Slots, Queue: *c.Queue, Wait: time.Duration(c.Wait), Memory: c.Memory}
}
