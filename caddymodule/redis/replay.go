// Package redis has the stores in Redis, for several gateways: of the replay
// guard, and of the slots that they share.
//
//	replay_guard redis redis://oz:{env.REDIS_PASSWORD}@redis.internal
//	capacity {
//		slots  9
//		shared redis redis://oz:{env.REDIS_PASSWORD}@redis.internal
//	}
//
// It is a package of its own so that only those who want it link its client:
// xcaddy.sh builds it in, others add
// --with github.com/oz-instant/caddy-oz-instant/caddymodule/redis.
package redis

import (
	"context"
	"crypto/rand"
	"errors"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"github.com/oz-instant/caddy-oz-instant/caddymodule"
)

func init() {
	caddy.RegisterModule(new(Replay))
}

// Replay is the store of a replay guard in a Redis or Valkey that several
// gateways share. A claim is one key with a time to live, which Redis itself
// measures: clocks of gateways do not matter. Redis must not evict keys
// (`maxmemory-policy noeviction`). Its replication is asynchronous, so that after
// a fail-over the last claims may be missing.
type Replay struct {
	// Where Redis is:
	//
	//	redis://[[<user>]:<password>@]<host>[:<port>][/<database>]
	//	redis+sentinel://[[<user>]:<password>@]<sentinel>[:<port>],<sentinel>…/<name of the primary>[/<database>]
	//	redis+cluster://[[<user>]:<password>@]<node>[:<port>],<node>…
	//
	// With `rediss` the connection is TLS; `?ca=<file>` names the certificate
	// authorities to trust instead of the machine's. Sentinels that want an account
	// get `?sentinel_user=…&sentinel_password=…`. Placeholders such as
	// `{env.REDIS_PASSWORD}` are replaced when the config is loaded, and shown
	// nowhere; the admin API, and Caddy's debug log, show what stands here in plain
	// text. Required.
	URL string `json:"url"`

	conn *connection
}

// prefix begins the keys.
const prefix = "oz_instant:replay:"

// claimScript claims for ARGV[2] milliseconds, unless somebody has claimed. The
// client repeats calls whose answer was lost, so that a claim that is already
// there may be this owner's. It is one script, since SET NX and a GET for the
// owner refuse a key that is released between them.
var claimScript = redis.NewScript(`
local owner = redis.call('GET', KEYS[1])
if owner then return owner == ARGV[1] and 1 or 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1`)

// settleScript makes a claim live for ARGV[2] milliseconds, unless it is
// another owner's.
var settleScript = redis.NewScript(`
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1`)

// releaseScript ends a claim, unless it is another owner's.
var releaseScript = redis.NewScript(`
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0`)

// CaddyModule returns the Caddy module information.
func (*Replay) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.oz_instant.replay.redis",
		New: func() caddy.Module { return new(Replay) },
	}
}

// Provision implements caddy.Provisioner. Redis need not be up: until it is,
// on_error decides about capsules.
func (s *Replay) Provision(ctx caddy.Context) (err error) {
	if s.conn, err = open(s.URL); err != nil {
		return err
	}
	go s.look(ctx, ctx.Logger())
	return nil
}

// Cleanup implements caddy.CleanerUpper.
func (s *Replay) Cleanup() error { return s.conn.close() }

// UnmarshalCaddyfile sets up the store from Caddyfile tokens. Syntax:
//
//	redis <url>
func (s *Replay) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	return readURL(d, &s.URL, "replay_guard: redis", " of its own (want also, on_error or window)")
}

// Claim implements caddymodule.ReplayStore.
func (s *Replay) Claim(ctx context.Context, key, owner string, ttl time.Duration) (bool, error) {
	first, err := claimScript.Run(ctx, s.conn, []string{prefix + key}, owner, ttl.Milliseconds()).Bool()
	return err == nil && first, plain(err)
}

// Settle implements caddymodule.ReplayStore.
func (s *Replay) Settle(ctx context.Context, key, owner string, ttl time.Duration) error {
	settled, err := settleScript.Run(ctx, s.conn, []string{prefix + key}, owner, ttl.Milliseconds()).Bool()
	if err == nil && !settled {
		return caddymodule.ErrClaimed
	}
	return plain(err)
}

// Release implements caddymodule.ReplayStore.
func (s *Replay) Release(ctx context.Context, key, owner string) error {
	return plain(releaseScript.Run(ctx, s.conn, []string{prefix + key}, owner).Err())
}

// look tells the operator now what capsules would be refused for later. Where
// INFO isn't allowed, it says nothing of eviction.
func (s *Replay) look(ctx context.Context, logger *zap.Logger) {
	switch err := s.try(ctx); {
	case errors.Is(ctx.Err(), context.Canceled): // the config has gone
		return
	case err != nil:
		logger.Warn(advice(err)+"; meanwhile on_error decides about capsules", zap.Error(err))
		return
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	info, err := s.conn.Info(ctx, "memory").Result()
	if err == nil && evicts(info) {
		logger.Warn("replay_guard: Redis evicts keys when its memory is full, and a capsule whose claim was evicted can count again; set maxmemory-policy noeviction")
	}
}

// lookLife is how long the key of a look stays that was cut short.
const lookLife = 5 * time.Second

// try does with a key of its own what capsules need: a read alone would succeed
// with a replica, and with an account that may do no more. The claim sends its
// script as text, as it must be sent after Redis was restarted.
func (s *Replay) try(ctx context.Context) error {
	key, owner := "look:"+rand.Text(), rand.Text()
	for _, call := range []func(context.Context) error{
		func(ctx context.Context) error {
			return plain(claimScript.Eval(ctx, s.conn, []string{prefix + key}, owner, lookLife.Milliseconds()).Err())
		},
		func(ctx context.Context) error { return s.Settle(ctx, key, owner, lookLife) },
		func(ctx context.Context) error { return s.Release(ctx, key, owner) },
	} {
		call := func() error {
			ctx, cancel := context.WithTimeout(ctx, callTimeout)
			defer cancel()
			return call(ctx)
		}
		if err := call(); err != nil {
			return err
		}
	}
	return nil
}

// advice says in plain words what must change.
func advice(err error) string {
	reply, _ := errors.AsType[replyError](err)
	switch reply {
	case "READONLY":
		return "replay_guard: Redis is a replica, which takes no claims; the URL must lead to the primary"
	case "NOPERM":
		return "replay_guard: the account in Redis lacks rights that claims need (want +set +get +del +eval +evalsha ~" + prefix +
			"*, with a database other than 0 also +select, in a cluster +cluster|slots)"
	}
	return "replay_guard: Redis does not answer as it should"
}

// evicts reads Redis's account of its memory.
func evicts(info string) bool {
	limited, evicting := false, false
	for line := range strings.Lines(info) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		switch name {
		case "maxmemory":
			limited = value != "0"
		case "maxmemory_policy":
			evicting = value != "noeviction"
		}
	}
	return limited && evicting
}

// Interface guards
var (
	_ caddymodule.ReplayStore = (*Replay)(nil)
	_ caddy.Module            = (*Replay)(nil)
	_ caddy.Provisioner       = (*Replay)(nil)
	_ caddy.CleanerUpper      = (*Replay)(nil)
	_ caddyfile.Unmarshaler   = (*Replay)(nil)
)
