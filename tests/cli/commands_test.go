package cli

import (
	"crypto/ecdh"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/testenv"
)

// keypair CONF FILE: the private key of a wg-quick file is the other half of
// the one publicKey in FILE.
func keypair(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: keypair CONF FILE")
	}
	find := func(file, pattern string) []byte {
		found := regexp.MustCompile(pattern+`([A-Za-z0-9+/]{43}=)`).FindAllStringSubmatch(ts.ReadFile(file), -1)
		if len(found) != 1 {
			ts.Fatalf("%s has %d keys, want 1", file, len(found))
		}
		b, err := base64.StdEncoding.DecodeString(found[0][1])
		ts.Check(err)
		return b
	}
	private, err := ecdh.X25519().NewPrivateKey(find(args[0], `(?m)^PrivateKey = `))
	ts.Check(err)
	if string(private.PublicKey().Bytes()) != string(find(args[1], `"?publicKey"?: "?`)) {
		ts.Fatalf("the publicKey in %s is not that of the private key in %s", args[1], args[0])
	}
}

// hide FILE…: replaces what is random in files by words, for goldens.
func hide(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: hide FILE…")
	}
	const aKey = `[A-Za-z0-9+/]{43}=`
	for _, file := range args {
		text := ts.ReadFile(file)
		for _, field := range []string{"PrivateKey = ", "PresharedKey = ", "publicKey: ", `"publicKey": "`, `"presharedKey": "`, "  bob: "} {
			text = regexp.MustCompile(regexp.QuoteMeta(field)+aKey).ReplaceAllString(text, field+"RANDOM")
		}
		ts.Check(os.WriteFile(ts.MkAbs(file), []byte(text), 0o600))
	}
}

// dropQR FILE: removes the lines of a QR code, of which there must be some.
func dropQR(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: drop-qr FILE")
	}
	text := ts.ReadFile(args[0])
	rest := regexp.MustCompile(`(?m)^\x1b\[30;107m.*\n`).ReplaceAllString(text, "")
	if rest == text {
		ts.Fatalf("%s has no QR code", args[0])
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(rest), 0o600))
}

// mode FILE OCTAL: the permissions of a file.
func mode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: mode FILE OCTAL")
	}
	info, err := os.Stat(ts.MkAbs(args[0]))
	ts.Check(err)
	want, err := strconv.ParseUint(args[1], 8, 32)
	ts.Check(err)
	if got := info.Mode().Perm(); got != os.FileMode(want) {
		ts.Fatalf("%s has mode %#o, want %#o", args[0], got, want)
	}
}

// serve REPLIES: an HTTP server on loopback, until the script ends, that answers
// with the lines of REPLIES in turn, each a status and a JSON document. Its
// address is $URL, and `kubeconfig` is a file that takes it for an API server.
// Requests are noted in the file `requests`: method, path, body.
func serve(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: serve REPLIES")
	}
	s := &server{replies: strings.Split(strings.TrimSpace(ts.ReadFile(args[0])), "\n"), log: ts.MkAbs("requests")}
	ts.Check(os.WriteFile(s.log, nil, 0o600))
	listening := httptest.NewServer(s)
	ts.Defer(listening.Close)
	ts.Setenv("URL", listening.URL)
	ts.Check(os.WriteFile(ts.MkAbs("kubeconfig"), fmt.Appendf(nil, `
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: %q}}]
contexts: [{name: x, context: {cluster: c, namespace: vpn}}]
current-context: x
`, listening.URL), 0o600))
}

type server struct {
	mu      sync.Mutex
	replies []string
	log     string
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	body, _ := io.ReadAll(r.Body)
	f, err := os.OpenFile(s.log, os.O_APPEND|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = fmt.Fprintf(f, "%s %s %s\n", r.Method, r.URL.RequestURI(), body)
		_ = f.Close()
	}
	if err == nil {
		err = recordData(r.URL.Path, body)
	}
	if err != nil || len(s.replies) == 0 {
		http.Error(w, "no reply left", http.StatusTeapot)
		return
	}
	status, document, _ := strings.Cut(s.replies[0], " ")
	s.replies = s.replies[1:]
	if err := recordData(r.URL.Path, []byte(document)); err != nil {
		http.Error(w, err.Error(), http.StatusTeapot)
		return
	}
	code, _ := strconv.Atoi(status)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = io.WriteString(w, document)
}

// recordData notes the keys in a Secret that a verb reads or writes, which it may
// show nowhere else.
func recordData(path string, document []byte) error {
	var secret struct {
		Data map[string][]byte `json:"data"`
	}
	if !strings.Contains(path, "/secrets/") || json.Unmarshal(document, &secret) != nil {
		return nil
	}
	for _, content := range secret.Data {
		if len(content) != 44 { // one of the bad ones, or one that is removed
			continue
		}
		if err := testenv.AppendSecret(string(content)); err != nil {
			return err
		}
	}
	return nil
}
