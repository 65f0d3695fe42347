package state

import (
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
)

// KeyTimes is when keys come and go, by kind of key; zero times are unknown, or
// never.
type KeyTimes struct {
	Server, Preshared KeyTime
	// Retires is when the older of two server keys goes.
	Retires time.Time
}

// KeyTime is about the keys of one kind.
type KeyTime struct {
	// Since is when the key in force came in force, of several the oldest. A key
	// without a time in its name has none.
	Since time.Time
	// Next is when the next one comes in force.
	Next time.Time
}

// TimesOfKeys reads the times from the names of the keys.
func TimesOfKeys(s *spec.Snapshot, now time.Time) KeyTimes {
	ids := Identities(s, now)
	out := KeyTimes{Server: KeyTime{Since: InForce(ids, now).From}}
	for _, k := range s.ServerKeys {
		if k.From.After(now) {
			out.Server.Next = earlier(out.Server.Next, k.From)
		}
	}
	if len(ids) > 1 {
		out.Retires = ids[0].Retires
	}
	if out.Server.Since.After(now) {
		out.Server.Since = time.Time{}
	}
	for i := range s.Peers {
		var since time.Time
		for _, k := range s.Peers[i].Scheduled {
			if k.From.After(now) {
				out.Preshared.Next = earlier(out.Preshared.Next, k.From)
				break
			}
			since = k.From
		}
		out.Preshared.Since = earlier(out.Preshared.Since, since)
	}
	return out
}

// earlier ignores zero times.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
