package redis

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"strings"
	"time"
	"unicode"

	"github.com/caddyserver/caddy/v2"
	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
)

func init() {
	redis.SetLogger(clientLog{})
}

const (
	// callTimeout bounds a call with all that it needs: a connection, a place in
	// the pool, and other attempts.
	callTimeout = time.Second

	// poolSize is how many calls can be in progress with one Redis, or with each
	// node of a cluster. By the client's default these are ten for each core: then
	// with two cores the 333 calls a second of 10,000 capsules a minute fail for
	// lack of a connection when answers take 60 ms. Connections are made when all
	// are in use, and each costs Redis a handshake: hence no more.
	poolSize = 100

	// bufferSize is that of a connection, for each direction: a claim has some 200
	// bytes. The client's default is 32 KiB.
	bufferSize = 4 << 10

	// idleTime is how long a connection is kept that nobody uses.
	idleTime = 5 * time.Minute

	// lingerTime is how long an unused connection can be used on: longer than
	// most attempts take.
	lingerTime = 10 * time.Minute
)

// connection is a client of one Redis, which all modules with the same URL, and
// the same certificate authorities in the file that it names, share.
type connection struct {
	redis.UniversalClient
	key [sha256.Size]byte // a digest: nothing here holds the URL's secrets
}

// String keeps the client out of whatever prints a connection.
func (*connection) String() string { return "connection to Redis" }

var connections = caddy.NewUsagePool()

// open returns the connection for a URL, whose placeholders it replaces. Nothing
// is dialled yet. Its errors quote nothing of the URL's values.
func open(url string) (*connection, error) {
	text, values, err := resolve(url)
	if err != nil {
		return nil, err
	}
	opts, authorities, err := parseURL(text, values)
	if err != nil {
		return nil, err
	}
	key := sha256.Sum256(fmt.Appendf(nil, "%q %q %q", text, values, authorities))
	shared, _, err := connections.LoadOrNew(key, func() (caddy.Destructor, error) {
		return &connection{redis.NewUniversalClient(bounded(opts)), key}, nil
	})
	if err != nil {
		return nil, err
	}
	return shared.(*connection), nil
}

// bounded sets times, so that no call outlasts callTimeout by much even if its
// context did, and turns off what the client would say to the server by itself.
func bounded(o *redis.UniversalOptions) *redis.UniversalOptions {
	o.Protocol = 2
	o.DisableIdentity = true
	o.MaintNotificationsConfig = noNotifications
	o.ContextTimeoutEnabled = true
	o.DialTimeout, o.ReadTimeout, o.WriteTimeout, o.PoolTimeout = callTimeout, callTimeout, callTimeout, callTimeout
	o.DialerRetries = 1
	o.MaxRetries, o.MinRetryBackoff, o.MaxRetryBackoff = 2, 10*time.Millisecond, 100*time.Millisecond
	o.PoolSize, o.ConnMaxIdleTime = poolSize, idleTime
	o.ReadBufferSize, o.WriteBufferSize = bufferSize, bufferSize
	return o
}

// close ends this use of the connection, if there is one: Caddy cleans up also
// after a failed Provision.
func (c *connection) close() error {
	if c == nil {
		return nil
	}
	_, err := connections.Delete(c.key)
	return err
}

// Destruct implements caddy.Destructor. Capsules in progress may still need
// the connection after a reload, such as one with another password: Caddy cleans
// up the old config without waiting for them.
func (c *connection) Destruct() error {
	time.AfterFunc(lingerTime, func() { _ = c.Close() }) // nobody is left to be told
	return nil
}

// plain returns err without what the server said: Redis quotes the arguments of
// commands that it refuses, and with them keys and owners.
func plain(err error) error {
	var reply redis.Error
	var op *net.OpError
	var certificate *tls.CertificateVerificationError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return context.DeadlineExceeded
	case errors.As(err, &certificate):
		return errors.New("redis: its certificate is not trusted")
	case errors.As(err, &op):
		return fmt.Errorf("redis: %w", op)
	case errors.Is(err, io.EOF):
		return errors.New("redis: connection closed")
	case errors.As(err, &reply):
		return replyError(errorCode(reply.Error()))
	}
	return fmt.Errorf("redis: error of type %T", err)
}

// replyError is the code of an error that Redis answered.
type replyError string

// Error implements error.
func (e replyError) Error() string { return "redis: it answered " + string(e) }

// noRight is how Redis says NOPERM of a command in a script.
const noRight = "The user executing the script can't run this command"

// inScript finds the code of an error that Redis 6 has put into one of a script.
var inScript = regexp.MustCompile(`^ERR Error running script .*: -([A-Z]+) `)

// errorCode returns the first word of an error of Redis, such as WRONGPASS.
func errorCode(text string) string {
	if strings.Contains(text, noRight) {
		return "NOPERM"
	}
	if found := inScript.FindStringSubmatch(text); found != nil {
		return found[1]
	}
	for i, r := range text {
		if !unicode.IsUpper(r) {
			text = text[:i]
			break
		}
	}
	if text == "" {
		return "an error"
	}
	return text
}

// clientLog takes the client's own log to Caddy's. It would write to standard
// error otherwise.
type clientLog struct{}

// Printf implements the client's logger.
func (clientLog) Printf(_ context.Context, format string, args ...any) {
	caddy.Log().Named("oz_instant.redis").Debug("client", zap.String("text", fmt.Sprintf(format, args...)))
}
