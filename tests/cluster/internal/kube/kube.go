// Package kube talks to the API server of the cluster, which listens inside a
// network namespace. It knows the few requests that the cluster's own life
// needs; client-go would make this small program take minutes to build.
package kube

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/netns"
	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/pki"
)

// FieldManager is the name under which the cluster applies its own objects.
const FieldManager = "vpn-gateway-cluster"

// Client sends requests to one API server.
type Client struct {
	base string
	http *http.Client
}

// Options say how to reach the API server.
type Options struct {
	// Server is its host:port.
	Server string
	// Netns is the network namespace to connect from.
	Netns string
	// CA verifies the server, PEM; User is the client's certificate.
	CA   []byte
	User pki.Pair
}

// New makes a client; it does not connect yet.
func New(o Options) (*Client, error) {
	cert, err := tls.X509KeyPair(o.User.Cert, o.User.Key)
	if err != nil {
		return nil, fmt.Errorf("client certificate: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(o.CA) {
		return nil, errors.New("certificate authority: no certificate in it")
	}
	dial := func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		err = netns.Do(o.Netns, func() (err error) {
			conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}
	return NewWithHTTP("https://"+o.Server, &http.Client{
		Timeout: 10 * time.Second,
		Transport: &http.Transport{
			DialContext:     dial,
			TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: roots, MinVersion: tls.VersionTLS12},
		},
	}), nil
}

// NewWithHTTP makes a client of a server by its base URL.
func NewWithHTTP(base string, c *http.Client) *Client { return &Client{base: base, http: c} }

// StatusError is an answer other than 2xx.
type StatusError struct {
	Request string // method and path
	Code    int
	Body    string
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("%s: status %d: %s", e.Request, e.Code, strings.TrimSpace(e.Body))
}

// request sends one; in is the body (nil for none), out what the answer's JSON
// is decoded into (nil: it is dropped).
func (c *Client) request(ctx context.Context, method, path, contentType string, in []byte, out any) error {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(in))
	if err != nil {
		return err
	}
	if in != nil {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	if resp.StatusCode/100 != 2 {
		return &StatusError{Request: method + " " + path, Code: resp.StatusCode, Body: string(body)}
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(body, out); err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	return nil
}

// Ready asks whether the API server serves.
func (c *Client) Ready(ctx context.Context) error {
	return c.request(ctx, http.MethodGet, "/readyz", "", nil, nil)
}

// Nodes are the names of all Node objects with their Ready condition.
func (c *Client) Nodes(ctx context.Context) (map[string]bool, error) {
	var list struct {
		Items []struct {
			Metadata struct{ Name string }
			Status   struct {
				Conditions []struct{ Type, Status string }
			}
		}
	}
	if err := c.request(ctx, http.MethodGet, "/api/v1/nodes", "", nil, &list); err != nil {
		return nil, err
	}
	nodes := map[string]bool{}
	for _, item := range list.Items {
		nodes[item.Metadata.Name] = false
		for _, condition := range item.Status.Conditions {
			if condition.Type == "Ready" {
				nodes[item.Metadata.Name] = condition.Status == "True"
			}
		}
	}
	return nodes, nil
}

// Apply applies the objects of a YAML text (documents between --- lines) by
// server-side apply. It knows kinds whose plural is the kind and an s.
func (c *Client) Apply(ctx context.Context, manifests string) error {
	for document := range strings.SplitSeq(manifests, "\n---\n") {
		path, err := objectPath([]byte(document))
		if err != nil {
			return err
		}
		path += "?force=true&fieldManager=" + FieldManager
		if err := c.request(ctx, http.MethodPatch, path, "application/apply-patch+yaml", []byte(document), nil); err != nil {
			return err
		}
	}
	return nil
}

// objectPath is the path of an object in the API.
func objectPath(document []byte) (string, error) {
	var object struct {
		APIVersion, Kind string
		Metadata         struct{ Name, Namespace string }
	}
	if err := yaml.Unmarshal(document, &object); err != nil {
		return "", fmt.Errorf("manifest: %w", err)
	}
	if object.APIVersion == "" || object.Kind == "" || object.Metadata.Name == "" {
		return "", fmt.Errorf("manifest %.60q: apiVersion, kind and metadata.name are needed", document)
	}
	path := "/apis/" + object.APIVersion
	if !strings.Contains(object.APIVersion, "/") {
		path = "/api/" + object.APIVersion
	}
	if object.Metadata.Namespace != "" {
		path += "/namespaces/" + object.Metadata.Namespace
	}
	return path + "/" + strings.ToLower(object.Kind) + "s/" + object.Metadata.Name, nil
}

// DaemonSetReady tells whether every node that should run the DaemonSet's Pod
// has it ready.
func (c *Client) DaemonSetReady(ctx context.Context, namespace, name string) (bool, error) {
	var set struct {
		Metadata struct{ Generation int64 }
		Status   struct {
			ObservedGeneration                  int64
			DesiredNumberScheduled, NumberReady int
		}
	}
	path := "/apis/apps/v1/namespaces/" + url.PathEscape(namespace) + "/daemonsets/" + url.PathEscape(name)
	if err := c.request(ctx, http.MethodGet, path, "", nil, &set); err != nil {
		return false, err
	}
	s := set.Status
	return s.ObservedGeneration == set.Metadata.Generation && s.DesiredNumberScheduled > 0 && s.NumberReady == s.DesiredNumberScheduled, nil
}

// SetLoadBalancer writes a load balancer's address into a Service's status, as
// a cloud provider's controller does.
func (c *Client) SetLoadBalancer(ctx context.Context, namespace, service, ip string) error {
	patch, err := json.Marshal(map[string]any{
		"status": map[string]any{"loadBalancer": map[string]any{"ingress": []any{map[string]any{"ip": ip, "ipMode": "VIP"}}}},
	})
	if err != nil {
		return err
	}
	path := "/api/v1/namespaces/" + url.PathEscape(namespace) + "/services/" + url.PathEscape(service) + "/status"
	return c.request(ctx, http.MethodPatch, path, "application/merge-patch+json", patch, nil)
}

// ReadyOn are the names of the nodes that have a ready endpoint of a Service.
func (c *Client) ReadyOn(ctx context.Context, namespace, service string) (map[string]bool, error) {
	var list struct {
		Items []struct {
			Endpoints []struct {
				NodeName   string
				Conditions struct{ Ready *bool } // absent means ready
			}
		}
	}
	path := "/apis/discovery.k8s.io/v1/namespaces/" + url.PathEscape(namespace) +
		"/endpointslices?labelSelector=" + url.QueryEscape("kubernetes.io/service-name="+service)
	if err := c.request(ctx, http.MethodGet, path, "", nil, &list); err != nil {
		return nil, err
	}
	nodes := map[string]bool{}
	for _, slice := range list.Items {
		for _, endpoint := range slice.Endpoints {
			if endpoint.NodeName != "" && (endpoint.Conditions.Ready == nil || *endpoint.Conditions.Ready) {
				nodes[endpoint.NodeName] = true
			}
		}
	}
	return nodes, nil
}
