{{/*
External Secrets. Its defaults are written out wherever they stand in a list: the API server
would fill them in, and Argo CD take that for drift.
*/}}

{{/*
A length of time as Go prints it, 1m0s for 1m: the controller writes its objects back with a
finalizer, and that is how the spec looks then. Takes the text.
*/}}
{{- define "vpn-gateway.duration" -}}
{{- include "vpn-gateway.seconds" . | duration -}}
{{- end -}}

{{/* The store by reference, as the fields name and kind. */}}
{{- define "vpn-gateway.storeRef" -}}
{{- $store := .Values.externalSecrets.secretStoreRef -}}
{{- if .Values.externalSecrets.secretStore.create -}}
{{- $store = dict "name" (include "vpn-gateway.fullname" .) "kind" "SecretStore" -}}
{{- end -}}
name: {{ $store.name | quote }}
kind: {{ $store.kind }}
{{- end -}}

{{/*
What External Secrets fetches, as a JSON list: the entries of the values, each with field (its
path there), secret (the Secret's name) and source (the Secret that a PushSecret pushes to
where it is fetched from; empty: none). A source has the name of its Secret, not of its place
in the list: that may change, and one peer's keys must never go to another's.
*/}}
{{- define "vpn-gateway.externalItems" -}}
{{- $external := .Values.externalSecrets -}}
{{- $items := list -}}
{{- if include "vpn-gateway.fetchesKey" . -}}
{{- $source := empty (include "vpn-gateway.pushesKey" .) | ternary "" (include "vpn-gateway.ownSecretName" .) -}}
{{- $items = append $items (merge (dict "field" "privateKey" "name" (include "vpn-gateway.keySecretName" .) "source" $source) (deepCopy $external.privateKey)) -}}
{{- end -}}
{{- if $external.enabled -}}
{{- $pushes := and $external.pushSecret.enabled .Values.keyRotation.enabled (not (empty .Values.keyRotation.presharedKeys.schedule)) -}}
{{- range $section := list "presharedKeys" "peers" -}}
{{- range $i, $item := index $external $section -}}
{{- $source := and $pushes (eq $section "presharedKeys") | ternary (printf "%s-source" $item.name) "" -}}
{{- $items = append $items (merge (dict "field" (printf "%s[%d]" $section $i) "source" $source) (deepCopy $item)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $items -}}
{{- end -}}

{{/* Where an entry comes from, as the fields data and dataFrom. Takes root and item. */}}
{{- define "vpn-gateway.externalData" -}}
{{- $item := .item -}}
{{- $defaults := dict "conversionStrategy" "Default" "decodingStrategy" "None" -}}
{{- $extract := merge (dict "key" $item.remoteKey "metadataPolicy" "None") $defaults -}}
{{- if $item.dataFrom -}}
dataFrom:
{{- toYaml $item.dataFrom | nindent 0 }}
{{- else if $item.property -}}
data:
- secretKey: {{ .root.Values.server.privateKey.key | quote }}
  remoteRef:
    {{- toYaml (set $extract "property" $item.property) | nindent 4 }}
{{- else -}}
dataFrom:
- {{ empty $item.find | ternary "extract" "find" }}:
    {{- empty $item.find | ternary $extract (merge (deepCopy ($item.find | default dict)) $defaults) | toYaml | nindent 4 }}
  {{- with $item.rewrite }}
  rewrite:
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}
{{- end -}}

{{/*
Template of the Secret that is made from an entry: that of the values; else, of keys, one that
reads what a PushSecret wrote to its one property, from here or from another cluster, and what
somebody wrote beside it, property by property. (custom_metadata is the controller's own mark
in Vault's KV v1.) A property that cannot be read is an error, and the Secret stays as it is.
Takes root and item.
*/}}
{{- define "vpn-gateway.externalTemplate" -}}
{{- $property := .root.Values.externalSecrets.pushSecret.property -}}
{{- $whole := and .item.remoteKey (not (or .item.property .item.rewrite)) -}}
{{- if .item.template -}}
{{- toYaml .item.template -}}
{{- else if and $property $whole (not (hasPrefix "peers" .item.field)) -}}
engineVersion: v2
mergePolicy: Replace
templateFrom:
- target: Data
  literal: |
    {{ printf "{{- $keys := index . %q | default \"{}\" | mustFromJson -}}" $property }}
    {{ "{{- range $name, $key := . -}}" }}
    {{ printf "{{- if not (or (hasKey $keys $name) (has $name (list %q \"custom_metadata\"))) -}}" $property }}
    {{ "{{- $_ := set $keys $name $key -}}" }}
    {{ "{{- end -}}" }}
    {{ "{{- end -}}" }}
    {{ "{{- toJson $keys -}}" }}
{{- end -}}
{{- end -}}

{{/* Names of the ExternalSecrets, joined by commas. */}}
{{- define "vpn-gateway.externalNames" -}}
{{- $names := list -}}
{{- range include "vpn-gateway.externalItems" . | fromJsonArray -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- join "," $names -}}
{{- end -}}
