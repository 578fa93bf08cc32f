package redis

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"github.com/oz-instant/caddy-oz-instant/caddymodule"
)

func init() {
	caddy.RegisterModule(new(Slots))
}

// Slots counts the slots and the queue of `capacity` in a Redis or Valkey (6 or
// newer) over all gateways with the same URL. What it keeps is small, and lost
// with no harm: gateways tell it again each second. All times are measured by
// Redis's own clock.
//
// Gateways share slots if they name their upstreams, `base_path`, Host and
// `tls_server_name` in the same way.
type Slots struct {
	// Where Redis is, as for `replay_guard`; with the same URL it is the same
	// connection. Required.
	URL string `json:"url"`

	conn   *connection
	logger *zap.Logger
}

// slotsPrefix begins the keys, and the channel's name.
const slotsPrefix = "oz_instant:slots:"

//go:embed slots.lua
var slotsText string

var slotsScript = redis.NewScript(slotsText)

// CaddyModule returns the Caddy module information.
func (*Slots) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.oz_instant.slots.redis",
		New: func() caddy.Module { return new(Slots) },
	}
}

// Provision implements caddy.Provisioner. Redis need not be up.
func (s *Slots) Provision(ctx caddy.Context) (err error) {
	s.logger = ctx.Logger()
	s.conn, err = open(s.URL)
	return err
}

// Cleanup implements caddy.CleanerUpper.
func (s *Slots) Cleanup() error { return s.conn.close() }

// UnmarshalCaddyfile sets up the store from Caddyfile tokens. Syntax:
//
//	redis <url>
func (s *Slots) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	return readURL(d, &s.URL, "capacity: shared redis", "")
}

// slotsKeys returns the keys of a room; those of each gateway are made of them in
// the script. The braces put all of them on one node of a cluster.
func slotsKeys(room string) []string {
	return []string{slotsPrefix + "{" + room + "}:gateways", slotsPrefix + "{" + room + "}:fresh"}
}

// slotsChannel returns the channel on which a room's gateways are told that they
// got a slot.
func slotsChannel(room string) string { return slotsPrefix + "{" + room + "}" }

// Sync implements caddymodule.SlotStore.
func (s *Slots) Sync(ctx context.Context, room string, r caddymodule.SlotReport) (a caddymodule.SlotAnswer, err error) {
	report, err := json.Marshal(r)
	if err != nil {
		return a, err
	}
	reply, err := slotsScript.Run(ctx, s.conn, slotsKeys(room), report, slotsChannel(room)).Slice()
	if err != nil {
		return a, explain(plain(err))
	}
	return readAnswer(reply)
}

func readAnswer(reply []any) (a caddymodule.SlotAnswer, err error) {
	switch len(reply) {
	case 0:
		return caddymodule.SlotAnswer{Unknown: true}, nil
	case 6:
	default:
		return a, errAnswer
	}
	var numbers [4]int64
	for i := range numbers {
		n, ok := reply[i].(int64)
		if !ok || n < 0 || n > math.MaxInt32 {
			return a, errAnswer
		}
		numbers[i] = n
	}
	a = caddymodule.SlotAnswer{
		Fresh: numbers[0] != 0, Gateways: int(numbers[1]), Held: int(numbers[2]), Waiting: int(numbers[3]),
	}
	if a.Granted, err = ids(reply[4]); err != nil {
		return a, err
	}
	a.Refused, err = ids(reply[5])
	return a, err
}

var errAnswer = errors.New("redis: unexpected answer of the script that counts slots")

func ids(value any) ([]int64, error) {
	values, ok := value.([]any)
	if !ok {
		return nil, errAnswer
	}
	list := make([]int64, len(values))
	for i, v := range values {
		text, _ := v.(string)
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return nil, errAnswer
		}
		list[i] = n
	}
	return list, nil
}

// Listen implements caddymodule.SlotStore. The client sees to it that a connection
// which has broken is made again.
func (s *Slots) Listen(ctx context.Context, room, gateway string, granted func()) {
	sub := s.conn.Subscribe(ctx, slotsChannel(room))
	defer sub.Close()
	defer context.AfterFunc(ctx, func() { _ = sub.Close() })() // which ends the channel
	if _, err := sub.ReceiveTimeout(ctx, callTimeout); err != nil && ctx.Err() == nil {
		s.logger.Warn("capacity: Redis doesn't announce slots now; until it does, each is found up to a second later", zap.Error(explain(plain(err))))
	}
	granted()
	for event := range sub.ChannelWithSubscriptions() {
		message, isMessage := event.(*redis.Message)
		if !isMessage || message.Payload == gateway { // it has subscribed again, or got a slot
			granted()
		}
	}
}

// explain adds to an error of Redis what must change.
func explain(err error) error {
	reply, _ := errors.AsType[replyError](err)
	switch reply {
	case "READONLY":
		return fmt.Errorf("%w: it is a replica, which takes no writes; the URL must lead to the primary", err)
	case "NOPERM":
		return fmt.Errorf("%w: the account lacks rights (want +eval +evalsha +time +get +set +pexpire +zadd +zrem +zcard +zcount +zscore +zrange +zrangebyscore +zremrangebyscore +publish +subscribe +ping ~%s* &%[2]s*)",
			err, slotsPrefix)
	}
	return err
}

// Interface guards
var (
	_ caddymodule.SlotStore = (*Slots)(nil)
	_ caddy.Module          = (*Slots)(nil)
	_ caddy.Provisioner     = (*Slots)(nil)
	_ caddy.CleanerUpper    = (*Slots)(nil)
	_ caddyfile.Unmarshaler = (*Slots)(nil)
)
