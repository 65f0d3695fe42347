package podrun

import (
	"debug/elf"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func TestMain(m *testing.M) {
	Main()
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		os.Exit(serve())
	}
	if len(os.Args) > 1 && os.Args[1] == "look" {
		os.Exit(look())
	}
	os.Exit(m.Run())
}

// serve is the program in the test's containers: this test binary again. It does
// what it is asked to by HTTP, and ends with status 7 on SIGTERM unless told
// --stubborn.
func serve() int {
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	fmt.Println("serving")
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, content any, err error) {
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_ = json.NewEncoder(w).Encode(content)
	}
	mux.HandleFunc("/ready", func(w http.ResponseWriter, _ *http.Request) {
		_, err := os.Stat("/etc/app/config/ready")
		answer(w, "yes", err)
	})
	mux.HandleFunc("/read", func(w http.ResponseWriter, r *http.Request) {
		content, err := os.ReadFile(r.URL.Query().Get("path"))
		answer(w, string(content), err)
	})
	mux.HandleFunc("/write", func(w http.ResponseWriter, r *http.Request) {
		answer(w, "", os.WriteFile(r.URL.Query().Get("path"), []byte("written"), 0o644))
	})
	mux.HandleFunc("/self", func(w http.ResponseWriter, _ *http.Request) {
		host, err := os.Hostname()
		answer(w, self{Args: os.Args[1:], Env: os.Environ(), Host: host, PID: os.Getpid()}, err)
	})
	go func() { _ = http.ListenAndServe(":8080", mux) }()
	<-term
	if slices.Contains(os.Args, "--stubborn") {
		fmt.Println("staying")
		select {}
	}
	return 7
}

// look prints what TestExec wants to know.
func look() int {
	if slices.Contains(os.Args, "--fail") {
		fmt.Fprintln(os.Stderr, "as asked")
		return 3
	}
	host, _ := os.Hostname()
	status, _ := os.ReadFile("/proc/self/status")
	config, err := os.ReadFile("/etc/app/config/ready")
	fmt.Println(host, os.Getenv("GREETING"), string(config), err)
	for line := range strings.Lines(string(status)) {
		if strings.HasPrefix(line, "Cap") || strings.HasPrefix(line, "NoNewPrivs") || strings.HasPrefix(line, "NSpid") {
			fmt.Print(line)
		}
	}
	return 0
}

type self struct {
	Args, Env []string
	Host      string
	PID       int
}

// selfImage is an image of this test binary, with its libraries if it has any.
func selfImage(t *testing.T) Image {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	image := Image{Files: map[string]string{"/app": exe}, Entrypoint: []string{"/app"}}
	f, err := elf.Open(exe)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	libraries, err := f.ImportedLibraries()
	if err != nil || len(libraries) == 0 {
		return image
	}
	loader, err := io.ReadAll(f.Section(".interp").Open())
	if err != nil {
		t.Fatal(err)
	}
	path := strings.TrimRight(string(loader), "\x00")
	image.Files[path] = path
	for _, l := range libraries {
		found, _ := filepath.Glob("/lib/*-linux-gnu/" + l)
		if len(found) == 0 {
			t.Fatalf("library %s of the test binary not found", l)
		}
		image.Files[found[0]] = found[0]
	}
	return image
}
