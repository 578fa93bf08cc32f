//go:build overlay

package caddybin

// What the source of Build imports besides the module, for go mod tidy alone: no other file imports it, and a go.mod that
// lacks it could not build a Caddy. The tag is never set.
import (
	_ "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
)
