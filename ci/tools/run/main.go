// Command run executes a pinned development tool, which it builds first where
// the cache doesn't hold it. It runs from the project's root.
//
//	go run ./ci/tools/run helm lint charts/vpn-gateway
//	go run ./ci/tools/run -path helm        (print where it is)
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/cloud-native-vpn/vpn-gateway/ci/tools"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "tools:", err)
		os.Exit(1)
	}
}

// run becomes the tool; it returns only where that fails or -path is given.
func run(ctx context.Context, args []string) error {
	pathOnly := len(args) > 0 && args[0] == "-path"
	if pathOnly {
		args = args[1:]
	}
	if len(args) == 0 {
		return errors.New("usage: run [-path] TOOL [ARGUMENT…]")
	}
	tool, err := tools.Lookup(args[0])
	if err != nil {
		return err
	}
	path, err := tool.Path(ctx, ".", os.Stderr)
	if err != nil {
		return err
	}
	if pathOnly {
		fmt.Println(path)
		return nil
	}
	if err := syscall.Exec(path, args, os.Environ()); err != nil {
		return fmt.Errorf("running %s: %w", path, err)
	}
	return nil
}
