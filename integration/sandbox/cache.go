package sandbox

import "sync"

// cache remembers what make made, up to a number of things, then begins anew.
type cache[K comparable, V any] struct {
	make func(K) V
	keep int

	mu   sync.Mutex
	made map[K]V
}

func newCache[K comparable, V any](keep int, make func(K) V) *cache[K, V] {
	return &cache[K, V]{make: make, keep: keep, made: map[K]V{}}
}

func (c *cache[K, V]) get(key K) V {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, ok := c.made[key]
	if !ok {
		v = c.make(key)
		if len(c.made) >= c.keep {
			clear(c.made)
		}
		c.made[key] = v
	}
	return v
}
