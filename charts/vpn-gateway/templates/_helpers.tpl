{{/* Helpers take the root context unless they say otherwise. */}}

{{/* Name of the chart in labels. */}}
{{- define "vpn-gateway.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Name of every object. 50 characters leave room for the longest suffix, "-key-" and 8 hex digits. */}}
{{- define "vpn-gateway.fullname" -}}
{{- $name := .Values.nameOverride | default .Chart.Name -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- .Values.fullnameOverride | default $full | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "vpn-gateway.namespace" -}}
{{- .Values.namespaceOverride | default .Release.Namespace -}}
{{- end -}}

{{/* Labels that select the gateway's Pods. They never change: a Deployment's selector cannot. */}}
{{- define "vpn-gateway.selectorLabels" -}}
app.kubernetes.io/name: {{ include "vpn-gateway.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{/* The same as key=value,… */}}
{{- define "vpn-gateway.selector" -}}
{{- $labels := include "vpn-gateway.selectorLabels" . | fromYaml -}}
{{- $selector := list -}}
{{- range $name := keys $labels | sortAlpha -}}
{{- $selector = append $selector (printf "%s=%s" $name (get $labels $name)) -}}
{{- end -}}
{{- join "," $selector -}}
{{- end -}}

{{/*
The two labels that name an object. Takes root and, for Pods that are not the gateway, role:
it goes into the name, so that no selector takes them for gateways.
*/}}
{{- define "vpn-gateway.nameLabels" -}}
{{- $labels := include "vpn-gateway.selectorLabels" .root | fromYaml -}}
{{- with .role -}}
{{- $_ := set $labels "app.kubernetes.io/name" (printf "%s-%s" (include "vpn-gateway.name" $.root | trunc (sub 62 (len .) | int) | trimSuffix "-") .) -}}
{{- end -}}
{{- toYaml $labels -}}
{{- end -}}

{{/*
Labels of the Pods of a template; without the chart's version, so that a new chart alone
replaces no Pod. Takes root, labels and role (see nameLabels).
*/}}
{{- define "vpn-gateway.podLabels" -}}
{{- $labels := include "vpn-gateway.nameLabels" . | fromYaml -}}
{{- toYaml (merge $labels (deepCopy (.labels | default dict)) (deepCopy (.root.Values.commonLabels | default dict))) -}}
{{- end -}}

{{/*
Metadata of an object. Takes root, and optionally suffix (of the name), name, namespace,
clusterWide (it has none), role (see nameLabels), component (a label), labels and annotations.
*/}}
{{- define "vpn-gateway.metadata" -}}
{{- $root := .root -}}
{{- $suffix := empty .suffix | ternary "" (printf "-%s" .suffix) -}}
{{- $labels := include "vpn-gateway.nameLabels" . | fromYaml -}}
{{- $_ := set $labels "app.kubernetes.io/version" $root.Chart.AppVersion -}}
{{- $_ := set $labels "app.kubernetes.io/managed-by" $root.Release.Service -}}
{{- $_ := set $labels "helm.sh/chart" (printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-") -}}
{{- with .component -}}
{{- $_ := set $labels "app.kubernetes.io/component" . -}}
{{- end -}}
name: {{ .name | default (printf "%s%s" (include "vpn-gateway.fullname" $root) $suffix) | quote }}
{{- if not .clusterWide }}
namespace: {{ .namespace | default (include "vpn-gateway.namespace" $root) | quote }}
{{- end }}
labels:
  {{- toYaml (merge $labels (deepCopy (.labels | default dict)) (deepCopy ($root.Values.commonLabels | default dict))) | nindent 2 }}
{{- with merge (deepCopy (.annotations | default dict)) (deepCopy ($root.Values.commonAnnotations | default dict)) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "vpn-gateway.image" -}}
{{- include "vpn-gateway.imageOf" (dict "root" . "image" .Values.image) -}}
{{- end -}}

{{/* Reference of an image. Takes root and image, values as those of image. */}}
{{- define "vpn-gateway.imageOf" -}}
{{- with (.root.Values.global | default dict).imageRegistry | default .image.registry }}{{ . }}/{{ end }}{{ .image.repository -}}
{{- if or .image.tag (not .image.digest) }}:{{ .image.tag | default .root.Chart.AppVersion }}{{ end -}}
{{- with .image.digest }}@{{ . }}{{ end -}}
{{- end -}}

{{- define "vpn-gateway.serviceAccountName" -}}
{{- $default := ternary (include "vpn-gateway.fullname" .) "default" .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default $default -}}
{{- end -}}

{{/* "true" when the Pod needs /dev/net/tun, else empty. */}}
{{- define "vpn-gateway.usesTun" -}}
{{- if ne .Values.server.dataPlane "kernel" }}true{{ end -}}
{{- end -}}

{{/* The least number of replicas: the autoscaler's where there is one, else what is asked for. */}}
{{- define "vpn-gateway.leastReplicas" -}}
{{- if .Values.autoscaling.enabled -}}
{{- int .Values.autoscaling.minReplicas -}}
{{- else -}}
{{- int .Values.replicaCount -}}
{{- end -}}
{{- end -}}

{{/* The port that clients dial: what follows the last colon of server.publicEndpoint. */}}
{{- define "vpn-gateway.publicPort" -}}
{{- .Values.server.publicEndpoint | splitList ":" | last | int -}}
{{- end -}}

{{/* A length of time in seconds; the schema holds it to the form 1h2m3s. Takes the text. */}}
{{- define "vpn-gateway.seconds" -}}
{{- $seconds := 0 -}}
{{- range $unit, $length := dict "h" 3600 "m" 60 "s" 1 -}}
{{- $count := regexFind (printf "[0-9]+%s" $unit) $ | trimSuffix $unit -}}
{{- $seconds = add $seconds (mul (int $count) $length) -}}
{{- end -}}
{{- $seconds -}}
{{- end -}}

{{/* Seconds from SIGTERM to SIGKILL: the drain, and 10 more to remove what the agent made. */}}
{{- define "vpn-gateway.gracePeriodSeconds" -}}
{{- if kindIs "invalid" .Values.terminationGracePeriodSeconds -}}
{{- add (include "vpn-gateway.seconds" .Values.server.drain) 10 -}}
{{- else -}}
{{- int .Values.terminationGracePeriodSeconds -}}
{{- end -}}
{{- end -}}

{{/*
The agent's gateway.yaml: the sections of the values field for field, less what the agent
gets in another way. Nobody naming the allowed destinations means everywhere. Of keyRotation
there is always what a key with a time needs, which somebody may also write by hand. The Secrets are
named although they are mounted: a Pod of an older revision has this file, and not the mounts
of Secrets that were added since; so it can tell. What the agent insists on comes last: a
file that somebody cut short has peers missing, and must not pass.
*/}}
{{- define "vpn-gateway.gatewayConfig" -}}
{{- $routing := deepCopy .Values.routing -}}
{{- if kindIs "invalid" $routing.allowedDestinations -}}
{{- $everywhere := list (dict "cidr" "0.0.0.0/0") -}}
{{- if .Values.ipv6.enabled -}}
{{- $everywhere = append $everywhere (dict "cidr" "::/0") -}}
{{- end -}}
{{- $_ := set $routing "allowedDestinations" $everywhere -}}
{{- end -}}
{{- $server := omit .Values.server "privateKey" -}}
{{- if not $server.mtu -}}
{{- $server = omit $server "mtu" -}}
{{- end -}}
ipv6:
  {{- toYaml .Values.ipv6 | nindent 2 }}
keyRotation:
  server:
    listenPort: {{ include "vpn-gateway.greenListenPort" . }}
    overlap: {{ .Values.keyRotation.server.overlap }}
    publicPort: {{ include "vpn-gateway.greenPublicPort" . }}
peers:
{{- range .Values.peers }}
- {{ toYaml . | indent 2 | trim }}
{{- else }} []
{{- end }}
{{- range $section := list "peersFrom" "presharedKeys" }}
{{ $section }}:
  existingSecrets: {{ include "vpn-gateway.mountedSecrets" (dict "root" $ "section" $section) }}
{{- end }}
routing:
  {{- toYaml $routing | nindent 2 }}
server:
  {{- toYaml (omit $server "addresses") | nindent 2 }}
  addresses:
  {{- toYaml $server.addresses | nindent 2 }}
{{- end -}}

{{/* How to scrape. Takes the values of a monitor. */}}
{{- define "vpn-gateway.scrape" -}}
path: /metrics
{{- with .interval }}
interval: {{ . }}
{{- end }}
{{- with .scrapeTimeout }}
scrapeTimeout: {{ . }}
{{- end }}
{{- with .relabelings }}
relabelings:
{{- toYaml . | nindent 0 }}
{{- end }}
{{- with .metricRelabelings }}
metricRelabelings:
{{- toYaml . | nindent 0 }}
{{- end }}
{{- end -}}
