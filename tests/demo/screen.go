package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

// labelWidth is that of the column of labels.
const labelWidth = 9

// screen prints one line a step: what is being done while it is being done (on a
// terminal), then what came of it.
type screen struct {
	out   io.Writer
	live  bool // a terminal, where a line can be written over
	width int  // of the terminal, in columns; 0: not known
	color bool
	mu    sync.Mutex
}

func newScreen(f *os.File) *screen {
	live := term.IsTerminal(int(f.Fd()))
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		width = 0
	}
	return &screen{out: f, live: live, width: width, color: live && os.Getenv("NO_COLOR") == ""}
}

// title prints a headline.
func (s *screen) title(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(s.out, "%s\n\n", s.paint("1", text))
}

// step runs f and prints what it returns beside label. doing says what f does,
// for the time it takes; f can replace it by the function that it gets. Lines
// after the first are set below it.
func (s *screen) step(label, doing string, f func(progress func(string)) (string, error)) error {
	var now sync.Map // the one key: what is being done
	now.Store("doing", doing)
	start := time.Now()
	done := make(chan struct{})
	var ticking sync.WaitGroup
	if s.live {
		show := func() {
			what, _ := now.Load("doing")
			line := s.fit(fmt.Sprintf("%s%v…", since(start), what))
			s.write("\r\x1b[K" + s.paint("2", "·") + s.label(label) + s.paint("2", line))
		}
		show()
		ticking.Go(func() {
			tick := time.NewTicker(time.Second)
			defer tick.Stop()
			for {
				select {
				case <-tick.C:
					show()
				case <-done:
					return
				}
			}
		})
	}
	text, err := f(func(what string) {
		now.Store("doing", what)
		if !s.live {
			s.write("·" + s.label(label) + what + "\n")
		}
	})
	close(done)
	ticking.Wait()
	mark := s.paint("32", "✓")
	switch {
	case errors.Is(err, context.Canceled):
		mark, text = s.paint("31", "✗"), "interrupted"
	case err != nil:
		mark, text = s.paint("31", "✗"), "failed"
	}
	if s.live {
		s.write("\r\x1b[K")
	}
	indent := "\n" + strings.Repeat(" ", labelWidth+3)
	s.write(mark + s.label(label) + strings.ReplaceAll(text, "\n", indent) + "\n")
	return err
}

func (s *screen) write(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, _ = io.WriteString(s.out, text)
}

func (s *screen) label(text string) string {
	return s.paint("1", fmt.Sprintf(" %-*s ", labelWidth, text))
}

// fit cuts text so that it stays on one line beside a label.
func (s *screen) fit(text string) string {
	runes := []rune(text)
	if most := s.width - labelWidth - 4; s.width > 0 && len(runes) > most {
		return string(runes[:max(most, 0)])
	}
	return text
}

// paint wraps text in a terminal's colour (ECMA-48 SGR).
func (s *screen) paint(color, text string) string {
	if !s.color {
		return text
	}
	return "\x1b[" + color + "m" + text + "\x1b[0m"
}

// since is how long something has been going on, in whole seconds once there are any.
func since(start time.Time) string {
	if d := time.Since(start).Round(time.Second); d > 0 {
		return d.String() + " "
	}
	return ""
}

// short is a duration for humans: 1.4 ms, 52 ms, 3.1 s.
func short(d time.Duration) string {
	switch {
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1f ms", d.Seconds()*1000)
	case d < 2*time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}
