package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// added writes by how much a quantile of a peer's exchanges is longer than that of the exchanges without a gateway, and its interval.
//
// A round has too few exchanges for a p99, so that the rounds count together. The interval of 95 % comes from drawing as many rounds
// as there are, some of them more than once, over and over (the bootstrap): what one disturbed round does to the figure shows in it.
func (c cell) added(r row, q float64) string {
	all := make([]int, len(r.took))
	for i := range all {
		all[i] = i
	}
	figure := milliseconds(pooled(r.took, all, q) - pooled(c.direct, all, q))
	if len(all) < 6 {
		return fmt.Sprintf("%.2f", figure)
	}
	draw := rand.New(rand.NewPCG(1, 2)) // the same figures give the same interval
	var drawn []float64
	for range 1000 {
		for i := range all {
			all[i] = draw.IntN(len(all))
		}
		drawn = append(drawn, milliseconds(pooled(r.took, all, q)-pooled(c.direct, all, q)))
	}
	slices.Sort(drawn)
	return fmt.Sprintf("%.2f [%.2f, %.2f]", figure, drawn[25], drawn[974])
}

// pooled returns a quantile of what some rounds have together.
func pooled(rounds [][]time.Duration, which []int, q float64) time.Duration {
	var all []time.Duration
	for _, i := range which {
		all = append(all, rounds[i]...)
	}
	return quantile(all, q)
}

// quantile returns the smallest of some durations that a share q of them doesn't exceed. It sorts them.
func quantile(of []time.Duration, q float64) time.Duration {
	slices.Sort(of)
	return of[min(int(q*float64(len(of))), len(of)-1)]
}
