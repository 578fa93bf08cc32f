package upload

import "context"

// SlotStore counts the slots and the queue of one or more rooms over all
// gateways: a room is one way to Oz. A module in the namespace
// http.handlers.oz_instant.slots must implement it.
//
// Times are durations in milliseconds, so that clocks of gateways don't matter:
// the store reckons with its own. Errors may go to the log, and must quote no
// secret. After a reload a store is used until the last capsule of its config has
// ended.
type SlotStore interface {
	// Sync tells the store what a gateway has and wants, and returns what it got.
	// It must be atomic over all gateways, and when a report comes twice nothing
	// else may come of it. It has a second, by its context: what takes longer
	// has failed, and may still have happened.
	//
	// In this order, the store
	//   - forgets gateways that have not reported for their Life, with all that
	//     they have; slots held for longer than Lease; and with a whole report all
	//     of this gateway that isn't in it;
	//   - takes over what the report says;
	//   - gives free slots to those that wait longest, of all gateways. One that
	//     hasn't reported for Silence gets none. What any other but this one gets is
	//     an offer, which ends after Offer unless that one reports;
	//   - has each newcomer take a slot that is still free, or wait if fewer than
	//     Queue do, and refuses the others.
	//
	// When a cautious gateway joins, or the first one, the room is fresh for its
	// Life: others may still be alone. Meanwhile only the one that reports gets
	// slots, and no more than its Share.
	//
	// Nothing of it happens when a gateway reports that hasn't joined: then the
	// store may have been restarted.
	Sync(ctx context.Context, room string, r SlotReport) (SlotAnswer, error)

	// Listen calls granted each time that a report of another gateway got this
	// one a slot, and whenever it may have missed that, until ctx ends. What it
	// misses costs a second: a gateway reports as often.
	Listen(ctx context.Context, room, gateway string, granted func())
}

// SlotReport is what a gateway tells a SlotStore. Its lists are what has changed,
// or if it is whole, all there is.
type SlotReport struct {
	Gateway  string `json:"gateway"`
	Joins    bool   `json:"joins"`    // it isn't known, or may not be; the report is whole
	Cautious bool   `json:"cautious"` // others may use slots that the store doesn't know of
	Left     bool   `json:"left"`     // it is going away, and has nothing any more
	Whole    bool   `json:"whole"`

	Slots int `json:"slots"` // limits, over all gateways
	Queue int `json:"queue"`
	Share int `json:"share"` // how many slots this one may have while the room is fresh

	Life    int64 `json:"life"`    // how long a gateway is believed that says nothing
	Silence int64 `json:"silence"` // after which such a gateway gets no slots any more
	Lease   int64 `json:"lease"`   // how long a slot may be held
	Offer   int64 `json:"offer"`   // how long one is kept for another gateway

	Held    []SlotTicket `json:"held"`    // have a slot
	Waiting []SlotTicket `json:"waiting"` // wait, and can't be refused any more
	New     []SlotTicket `json:"new"`     // want to wait
	Over    []int64      `json:"over"`    // are no more
}

// SlotTicket is one that waits for a slot, or has it.
type SlotTicket struct {
	ID  int64 `json:"id"`  // unique in its gateway
	Age int64 `json:"age"` // since it came, or got its slot
}

// SlotAnswer is what a SlotStore answers.
type SlotAnswer struct {
	Unknown  bool // nothing was done: the gateway must join
	Fresh    bool
	Gateways int
	Held     int // slots in use, over all gateways
	Waiting  int // how many wait, over all gateways

	Granted []int64 // all tickets of this gateway that have a slot
	Refused []int64 // new ones for which there was no place
}
