package cli

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// tty COLUMNS COMMAND…: runs the command with a terminal of that width as
// standard output. What was shown is in the file `shown`, with lines that end
// in a line feed alone; 0 columns is a terminal that does not tell.
func tty(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: tty COLUMNS COMMAND…")
	}
	columns, err := strconv.ParseUint(args[0], 10, 16)
	ts.Check(err)
	master, terminal, err := openTerminal(uint16(columns))
	ts.Check(err)
	cmd := exec.CommandContext(context.Background(), args[1], args[2:]...)
	cmd.Dir = ts.MkAbs(".")
	cmd.Stdout = terminal
	ts.Check(cmd.Start())
	ts.Check(terminal.Close())
	var shown bytes.Buffer
	// The master's read ends with EIO once nobody has the terminal open.
	if _, err := shown.ReadFrom(master); err != nil && !errors.Is(err, syscall.EIO) {
		ts.Fatalf("terminal: %v", err)
	}
	ts.Check(master.Close())
	ts.Check(cmd.Wait())
	ts.Check(os.WriteFile(ts.MkAbs("shown"), []byte(strings.ReplaceAll(shown.String(), "\r\n", "\n")), 0o600))
}

// openTerminal opens both ends of a pseudo-terminal (pty(7)).
func openTerminal(columns uint16) (master, terminal *os.File, err error) {
	master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	fd := int(master.Fd())
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		terminal, err = os.OpenFile("/dev/pts/"+strconv.Itoa(number), os.O_RDWR|syscall.O_NOCTTY, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(int(terminal.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: columns})
	}
	if err != nil {
		_ = master.Close()
	}
	return master, terminal, err
}
