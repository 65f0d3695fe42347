package main

import (
	"context"
	"fmt"
	"log/slog"
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/backend"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/rotate"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/telemetry"
)

// externalSecrets is the API server as package backend knows it.
type externalSecrets struct{ *rotate.API }

// Ready implements [backend.ExternalSecrets].
func (e externalSecrets) Ready(ctx context.Context, name string) (backend.Condition, error) {
	c, err := e.ExternalSecretReady(ctx, name)
	return backend.Condition(c), err
}

// withExternalSecrets begins to look at ExternalSecrets, and returns the status
// with a condition about them.
func withExternalSecrets(ctx context.Context, names []string, log *slog.Logger, reg prometheus.Registerer, status func() telemetry.Status) (func() telemetry.Status, error) {
	if len(names) == 0 {
		return status, nil
	}
	api, err := rotate.NewAPI(rotate.APIOptions{})
	if err != nil {
		return nil, fmt.Errorf("--external-secrets: %w", err)
	}
	w := backend.New(backend.Options{Client: externalSecrets{api}, Names: names, Every: externalInterval, Log: log})
	go w.Run(ctx)
	telemetry.RegisterExternalSecrets(reg, w.Ready)
	return func() telemetry.Status {
		s := status()
		s.Conditions = append(slices.Clone(s.Conditions), w.Condition())
		return s
	}, nil
}
