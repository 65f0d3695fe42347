// Command echo is the service behind the gateway in demonstrations and tests:
// over HTTP and UDP it answers who it is and whom it saw. It is its own client
// too, since its image holds nothing else:
//
//	echo serve [ADDRESS]          serve HTTP and UDP there (:8080)
//	echo get URL                  print what an HTTP server answers
//	echo udp HOST:PORT MESSAGE    print what a UDP server answers
//
// The answer is one line: HOSTNAME CLIENT-ADDRESS PATH-OR-MESSAGE.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

const timeout = 5 * time.Second

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "echo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	switch {
	case len(args) == 1 && args[0] == "serve":
		return serve(ctx, ":8080")
	case len(args) == 2 && args[0] == "serve":
		return serve(ctx, args[1])
	case len(args) == 2 && args[0] == "get":
		return get(ctx, args[1], out)
	case len(args) == 3 && args[0] == "udp":
		return udp(args[1], args[2], out)
	}
	return errors.New("usage: echo serve [ADDRESS] | get URL | udp HOST:PORT MESSAGE")
}

func serve(ctx context.Context, address string) error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	packets, err := net.ListenPacket("udp", address)
	if err != nil {
		return err
	}
	server := &http.Server{
		Addr:              address,
		ReadHeaderTimeout: timeout,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintln(w, host, r.RemoteAddr, r.URL.Path)
		}),
	}
	failed := make(chan error, 2)
	go func() { failed <- answer(packets, host) }()
	go func() { failed <- server.ListenAndServe() }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		return errors.Join(server.Close(), packets.Close())
	}
}

func answer(packets net.PacketConn, host string) error {
	buffer := make([]byte, 1<<16)
	for {
		n, from, err := packets.ReadFrom(buffer)
		if err != nil {
			return err
		}
		line := fmt.Sprintln(host, from, strings.TrimSpace(string(buffer[:n])))
		if _, err := packets.WriteTo([]byte(line), from); err != nil {
			fmt.Fprintln(os.Stderr, "echo:", err) // one client's trouble, not the server's
		}
	}
}

func get(ctx context.Context, url string, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	_, err = io.Copy(out, resp.Body)
	return err
}

func udp(address, message string, out io.Writer) error {
	conn, err := net.DialTimeout("udp", address, timeout)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, message); err != nil {
		return err
	}
	buffer := make([]byte, 1<<16)
	n, err := conn.Read(buffer)
	if err != nil {
		return err
	}
	_, err = out.Write(buffer[:n])
	return err
}
