// Package replicas tests how several replicas of a gateway pass packets on to each
// other, with real devices, firewalls and stock clients in network namespaces. It has
// tests only.
package replicas
