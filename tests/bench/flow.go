package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/netns"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/stream"
)

const (
	rotationRate = 1000 // packets a second
	// backAfter is how long a stream may take to come through again, three times
	// what it takes a client to find out by itself that a session is gone.
	backAfter = 45 * time.Second
)

// flow is a client's way to the echo behind its gateway.
type flow struct {
	from *netns.NS
	to   netip.AddrPort
}

// loss is what a stream lost. LongestLoss is the outage.
type loss struct {
	stream.Report
	// overflowed is how many packets the client's machine had and dropped.
	overflowed uint64
}

// during streams while a change is made, until the stream comes through again,
// and returns what became of it.
func (f flow) during(ctx context.Context, change func() error) (out loss, err error) {
	before, err := overflowed(f.from)
	if err != nil {
		return out, err
	}
	s, err := stream.Start(stream.Options{From: f.from, To: f.to, Rate: rotationRate})
	if err != nil {
		return out, err
	}
	err = through(ctx, s, rotationRate/10)
	if err == nil {
		err = change()
	}
	if err == nil {
		err = through(ctx, s, rotationRate/2)
	}
	out.Report = s.Stop(time.Second)
	after, failed := overflowed(f.from)
	out.overflowed = after - before
	return out, errors.Join(err, failed)
}

// through waits until n more packets have come back.
func through(ctx context.Context, s *stream.Stream, n uint64) error {
	ctx, cancel := context.WithTimeout(ctx, backAfter)
	defer cancel()
	return s.Await(ctx, n)
}

// overflowed is how many packets the machine's UDP sockets have had no room for.
// That of Debian's wireguard-go holds a quarter of a second of the stream: on a busy
// machine the client waits for a processor longer than that, and packets are lost
// that the gateway has delivered.
func overflowed(ns *netns.NS) (uint64, error) {
	const path, counter = "/proc/thread-self/net/snmp", "RcvbufErrors"
	var text []byte
	err := ns.Do(func() (err error) {
		text, err = os.ReadFile(path)
		return err
	})
	if err != nil {
		return 0, err
	}
	// A line of names, and one of numbers.
	var names []string
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != "Udp:" {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		if i := slices.Index(names, counter); i > 0 && i < len(fields) {
			return strconv.ParseUint(fields[i], 10, 64)
		}
	}
	return 0, fmt.Errorf("%s: no %s of UDP", path, counter)
}

// kept is what was lost of how many packets, over a whole rotation.
type kept struct{ lost, overflowed, sent uint64 }

func (k *kept) add(l loss) {
	k.lost, k.overflowed, k.sent = k.lost+l.Lost, k.overflowed+min(l.overflowed, l.Lost), k.sent+l.Sent
}

// none tells whether everything got to the client.
func (k kept) none() bool { return k.lost == k.overflowed }

func (k kept) String() string {
	text := fmt.Sprintf("%s of %s", grouped(int(k.lost)), grouped(int(k.sent)))
	if k.overflowed > 0 {
		text += fmt.Sprintf(" (%s delivered to the client, whose socket was full)", grouped(int(k.overflowed)))
	}
	return text
}

// inSeconds is a whole second from now on, as a key's name has it, at least n
// seconds away.
func inSeconds(n int) time.Time {
	return time.Now().Add(time.Duration(n+1) * time.Second).Truncate(time.Second)
}

func until(ctx context.Context, when time.Time) error {
	select {
	case <-time.After(time.Until(when)):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// untilTime waits for a key's time. What was measured where that has come before
// everything was ready for it would not be what the table says.
func untilTime(ctx context.Context, when time.Time) error {
	if late := time.Since(when); late > 0 {
		return fmt.Errorf("this machine is too busy: it was ready for a key's time %v after it", late)
	}
	return until(ctx, when)
}
