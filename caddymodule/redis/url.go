package redis

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// noNotifications keeps the client from asking for events that only one vendor's
// Redis sends, and that an account may not be allowed to ask for.
var noNotifications = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}

const (
	modeSentinel = "sentinel"
	modeCluster  = "cluster"

	redisPort    = "6379"
	sentinelPort = "26379"
)

// errForm says how a URL must look. It quotes nothing: there may be a password
// in it.
var errForm = errors.New("redis: invalid URL (want redis://[[<user>]:<password>@]<host>[:<port>][/<database>]; rediss for TLS; redis+sentinel://<sentinels>/<name>, redis+cluster://<nodes>)")

var errDatabase = errors.New("redis: invalid database in the URL (want a number)")

// readURL reads the argument of a module, which has no options in a block. The
// errors begin with where it stands.
func readURL(d *caddyfile.Dispenser, url *string, where, others string) error {
	d.Next()
	if !d.AllArgs(url) {
		return d.Errf("%s needs a URL, and nothing else (such as redis://:{env.REDIS_PASSWORD}@redis.internal)", where)
	}
	if d.NextBlock(0) {
		return d.Errf("%s has no options%s", where, others)
	}
	if err := checkURL(*url); err != nil {
		return d.WrapErr(err)
	}
	return nil
}

// checkURL checks as much of a URL as can be seen before its placeholders are
// replaced.
func checkURL(text string) error {
	if text != "" && placeholder.FindString(text) == text {
		return nil // all of it
	}
	p, err := split(placeholder.ReplaceAllString(text, "1"))
	if err != nil {
		return err
	}
	var u urlReader
	u.place(p, new(redis.UniversalOptions))
	return u.err
}

var placeholder = regexp.MustCompile(`\{[^{}]*\}`)

// resolve replaces the placeholders of a URL by marks, so that no character of
// their values can be taken for a part of the URL. Only a URL that is a
// placeholder as a whole is one afterwards. Its errors count placeholders
// instead of naming them: braces may be a part of a password.
func resolve(text string) (marked string, values []string, err error) {
	repl := caddy.NewReplacer()
	value := func(name string) string {
		v, e := repl.ReplaceOrErr(name, true, true)
		if e != nil && err == nil {
			err = fmt.Errorf("redis: placeholder %d in the URL is unknown or empty (want one such as {env.REDIS_PASSWORD})", len(values)+1)
		}
		return strings.TrimRight(v, "\r\n") // of a file
	}
	if text != "" && placeholder.FindString(text) == text {
		return value(text), nil, err
	}
	marked = placeholder.ReplaceAllStringFunc(text, func(name string) string {
		values = append(values, value(name))
		return mark(len(values) - 1)
	})
	return marked, values, err
}

func mark(i int) string { return "\x00" + strconv.Itoa(i) + "\x00" }

// parts are those of a URL, as they stand there.
type parts struct {
	tls      bool
	mode     string
	user     string
	password string
	hosts    string
	path     string
	query    string
}

// split takes a URL apart. Package net/url refuses lists of hosts with ports,
// and quotes what it refuses. An @ after the path begins belongs to a secret with
// a / in it, and what stands before that / isn't a host.
func split(text string) (p parts, err error) {
	scheme, rest, found := strings.Cut(text, "://")
	scheme, mode, hasMode := strings.Cut(scheme, "+")
	if !found || scheme != "redis" && scheme != "rediss" || hasMode && mode != modeSentinel && mode != modeCluster {
		return p, errForm
	}
	p.tls, p.mode = scheme == "rediss", mode
	p.hosts = rest
	if end := strings.IndexAny(rest, "/?"); end >= 0 {
		p.hosts, rest = rest[:end], rest[end:]
		if strings.Contains(rest, "@") {
			return p, errForm
		}
		p.path, p.query, _ = strings.Cut(rest, "?")
		p.path = strings.TrimPrefix(p.path, "/")
	}
	if at := strings.LastIndex(p.hosts, "@"); at >= 0 {
		account := p.hosts[:at]
		p.hosts = p.hosts[at+1:]
		if p.user, p.password, found = strings.Cut(account, ":"); !found || p.password == "" {
			return p, errForm
		}
	}
	if mode == modeCluster && p.path != "" {
		return p, errForm
	}
	return p, nil
}

// parseURL returns the options for a URL with its values, and the certificate
// authorities that it read from a file.
func parseURL(text string, values []string) (opts *redis.UniversalOptions, authorities []byte, err error) {
	p, err := split(text)
	if err != nil {
		return nil, nil, err
	}
	opts = &redis.UniversalOptions{IsClusterMode: p.mode == modeCluster}
	u := urlReader{values: values}
	u.place(p, opts)
	if p.tls {
		opts.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	u.query(p.query, opts)
	return opts, u.authorities, u.err
}

// urlReader reads parts of a URL. The first error stays.
type urlReader struct {
	values      []string
	authorities []byte // in PEM
	err         error
}

func (u *urlReader) fail(err error) {
	if u.err == nil {
		u.err = err
	}
}

// text unescapes a part and puts the values of placeholders into it.
func (u *urlReader) text(part string) string {
	text, err := url.PathUnescape(part)
	if err != nil {
		u.fail(errForm)
	}
	return u.restore(text)
}

func (u *urlReader) restore(text string) string {
	for i, value := range u.values {
		text = strings.ReplaceAll(text, mark(i), value)
	}
	return text
}

// place reads all but the query.
func (u *urlReader) place(p parts, opts *redis.UniversalOptions) {
	opts.Username, opts.Password = u.text(p.user), u.text(p.password)
	port, database := redisPort, p.path
	if p.mode == modeSentinel {
		var name string
		name, database, _ = strings.Cut(p.path, "/")
		if opts.MasterName = u.text(name); !hostName.MatchString(opts.MasterName) {
			u.fail(errForm)
		}
		port = sentinelPort
	}
	opts.Addrs = u.addresses(p.hosts, port)
	if p.mode == "" && len(opts.Addrs) > 1 { // the client would take it for a cluster
		u.fail(errForm)
	}
	opts.DB = u.number(database)
}

var (
	hostName   = regexp.MustCompile(`^[A-Za-z0-9._-]+$`) // Sentinel's names of primaries are like that, too
	bracketed  = regexp.MustCompile(`^\[[0-9A-Fa-f:.]+(%[A-Za-z0-9._-]+)?\]$`)
	portSuffix = regexp.MustCompile(`:[0-9]+$`)
)

func (u *urlReader) addresses(hosts, defaultPort string) (list []string) {
	for host := range strings.SplitSeq(u.restore(hosts), ",") {
		name, port := host, defaultPort
		if suffix := portSuffix.FindString(host); suffix != "" {
			name, port = strings.TrimSuffix(host, suffix), suffix[1:]
		}
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 || !hostName.MatchString(name) && !bracketed.MatchString(name) {
			u.fail(errForm)
		}
		name = strings.Trim(name, "[]")
		list = append(list, net.JoinHostPort(name, port))
	}
	return list
}

func (u *urlReader) number(part string) int {
	text := u.text(part)
	if text == "" {
		return 0
	}
	n, err := strconv.ParseUint(text, 10, 31)
	if err != nil {
		u.fail(errDatabase)
	}
	return int(n)
}

func (u *urlReader) query(query string, opts *redis.UniversalOptions) {
	for pair := range strings.SplitSeq(query, "&") {
		name, part, _ := strings.Cut(pair, "=")
		switch value := u.text(part); name {
		case "":
		case "ca":
			u.trust(opts.TLSConfig, value)
		case "sentinel_user":
			opts.SentinelUsername = value
		case "sentinel_password":
			opts.SentinelPassword = value
		default:
			u.fail(errors.New("redis: unknown option in the URL (want ca, sentinel_user or sentinel_password)"))
		}
	}
}

func (u *urlReader) trust(config *tls.Config, file string) {
	if config == nil {
		u.fail(errors.New("redis: ca needs TLS (want rediss://)"))
		return
	}
	var err error
	if u.authorities, err = os.ReadFile(file); err != nil {
		if path, ok := errors.AsType[*fs.PathError](err); ok {
			err = path.Err // without the file's name, which is a part of the URL
		}
		u.fail(fmt.Errorf("redis: ca: %w", err))
		return
	}
	config.RootCAs = x509.NewCertPool()
	if !config.RootCAs.AppendCertsFromPEM(u.authorities) {
		u.fail(errors.New("redis: ca: no certificate in the file"))
	}
}
