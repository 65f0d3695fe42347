package fleet

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A process that is killed takes wireguard-go's sessions with it, and its clients wait for
// 15 s. Whoever knew these sessions could call them at once; siblings do. So a replica
// leaves a note for its successor in the same Pod: whose they are and by which index, and
// nothing that would open a packet.
//
//	0     version
//	1…8   time since the machine was started, in ns: a clock that nobody sets
//	9…    sessions, as in [encode]

const (
	memoryVersion = 1
	memoryHeader  = 9
	// memoryMost bounds the file, which lies in the container's memory.
	memoryMost = 1 << 20
	// memoryRest is how long to wait between two writings at least, and memoryShare what
	// they may cost: one part of so many of a processor.
	memoryRest  = 200 * time.Millisecond
	memoryShare = 50
)

// writeMemory replaces a note; a reader finds the old one or the new one.
func writeMemory(path string, sessions []Session, now time.Time) error {
	if most := (memoryMost - memoryHeader - 1) / wireSession; len(sessions) > most {
		sessions = sessions[:most]
	}
	up, err := sinceBoot()
	if err != nil {
		return err
	}
	b := binary.BigEndian.AppendUint64([]byte{memoryVersion}, uint64(up)) //nolint:gosec // never negative
	b = append(b, encode(sessions, now)...)
	next := path + ".next"
	if err := os.WriteFile(next, b, 0o600); err != nil {
		return err
	}
	return os.Rename(next, path)
}

// readMemory returns the sessions of a note, as old as they are by now; none where there
// is no note, or one of before the machine was started.
func readMemory(path string, now time.Time) ([]Session, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if len(b) < memoryHeader || b[0] != memoryVersion {
		return nil, fmt.Errorf("%s: %w", path, errMalformed)
	}
	up, err := sinceBoot()
	if err != nil {
		return nil, err
	}
	age := up - time.Duration(binary.BigEndian.Uint64(b[1:])) //nolint:gosec // as written
	if age < 0 || age >= sessionLifetime {
		return nil, nil
	}
	sessions, err := decode(b[memoryHeader:], now.Add(-age))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return sessions, nil
}

// sinceBoot is CLOCK_BOOTTIME, which goes on while the machine sleeps.
func sinceBoot() (time.Duration, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return 0, fmt.Errorf("CLOCK_BOOTTIME: %w", err)
	}
	return time.Duration(t.Nano()), nil
}

// Own returns our sessions that are the newest of their peers.
func (r *Replica) Own() []Session {
	var out []Session
	for index, m := range r.mine {
		if s, ok := r.table.Newest(m.peer); ok && s.Index == index && r.isMine(s) {
			out = append(out, s)
		}
	}
	return out
}

// Remembered takes up what the process before this one, in the same Pod, has left of its
// sessions. Where the device outlived it, they are ours; else whoever sends by them is
// called, and after a moment those who do not send.
func (r *Replica) Remembered(sessions []Session, now time.Time) Effects {
	if len(sessions) > 0 && !r.inherited {
		r.gone[r.self] = departure{at: now}
	}
	return r.Heard(sessions, now)
}

// remember takes up the note of the process before this one.
func (f *Fleet) remember() {
	if f.options.Memory == "" {
		return
	}
	sessions, err := readMemory(f.options.Memory, time.Now())
	if err != nil {
		f.options.Log.Warn("cannot read what is left of sessions, peers wait for WireGuard's own timers", "error", err)
		return
	}
	f.do(func(now time.Time) Effects { return f.replica.Remembered(sessions, now) })
}

// keepMemory writes the note for the next process, soon after a session of ours was made.
func (f *Fleet) keepMemory(ctx context.Context) {
	failed := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.made:
		}
		start := time.Now()
		f.mu.Lock()
		sessions := f.replica.Own()
		f.mu.Unlock()
		err := writeMemory(f.options.Memory, sessions, start)
		if err != nil && err.Error() != failed {
			failed = err.Error()
			f.options.Log.Warn("cannot leave a note of sessions: were this process killed, peers would wait for WireGuard's own timers", "error", err)
		}
		if !pause(ctx, max(memoryRest, memoryShare*time.Since(start))) {
			return
		}
	}
}
