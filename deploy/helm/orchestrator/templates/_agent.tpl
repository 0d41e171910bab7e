{{/*
The pod of a worker or a head host. dict root, part (its values), component, boxed, own (settings of its own), nameFrom
(the field that names it), data (the data volume, as YAML), readsNode (whether it may read its node).
*/}}

{{/*
What an agent that makes boxes keeps of a privileged pod's rights, as its systemd unit has it: no kernel modules, clock,
raw devices or reboot. No job is root: each box has a user of its own.
*/}}
{{- define "orchestrator.boxCapabilities" -}}
-all,+sys_admin,+net_admin,+setuid,+setgid,+setpcap,+chown,+fowner,+dac_override,+kill,+sys_ptrace,+sys_chroot
{{- end -}}

{{- define "orchestrator.agentPod" -}}
{{- $root := .root }}
{{- $part := .part }}
{{- $name := include "orchestrator.fullname" $root }}
metadata:
  labels:
    {{- include "orchestrator.podLabels" (dict "root" $root "component" .component) | nindent 4 }}
  annotations:
    kubectl.kubernetes.io/default-container: agent
    # Settings are read at the start.
    orchestrator/settings-sha256: {{ include "orchestrator.workerToml" (dict "root" $root "own" .own "settings" $part.settings) | sha256sum | quote }}
    {{- with $part.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ $name }}-{{ .component }}
  automountServiceAccountToken: {{ .readsNode }}
  # Variables named after Services would be taken for settings.
  enableServiceLinks: false
  # SIGTERM drains: jobs get their notice and move, the last statements go out.
  terminationGracePeriodSeconds: {{ include "orchestrator.agentGraceSeconds" $part.settings }}
  {{- include "orchestrator.pullSecrets" $root | nindent 2 }}
  {{- with $part.runtimeClassName }}
  runtimeClassName: {{ . | quote }}
  {{- end }}
  {{- if $part.hostNetwork }}
  hostNetwork: true
  dnsPolicy: ClusterFirstWithHostNet
  {{- end }}
  securityContext:
    {{- if .boxed }}
    # Boxes are made by root; what runs in them is not.
    runAsUser: 0
    runAsGroup: 0
    {{- else }}
    {{- include "orchestrator.podSecurity" $root | nindent 4 }}
    {{- end }}
  {{- include "orchestrator.placement" $part | nindent 2 }}
  affinity:
    {{- if $part.affinity }}
    {{- toYaml $part.affinity | nindent 4 }}
    {{- else if eq .component "head-host" }}
    podAntiAffinity:
      preferredDuringSchedulingIgnoredDuringExecution:
        - weight: 100
          podAffinityTerm:
            topologyKey: kubernetes.io/hostname
            labelSelector:
              matchLabels:
                {{- include "orchestrator.selector" (dict "root" $root "component" .component) | nindent 16 }}
    {{- else }} {}
    {{- end }}
  {{- if not .boxed }}
  initContainers:
    # A directory that the kubelet made on the node is root's.
    - name: own-data
      image: {{ include "orchestrator.image" (dict "root" $root "image" "agent") | quote }}
      imagePullPolicy: {{ $root.Values.images.agent.pullPolicy }}
      command: [chown, "10001:10001", /var/lib/orchestrator-agent]
      resources:
        requests: {cpu: 10m, memory: 16Mi}
        limits: {memory: 64Mi}
      securityContext:
        runAsNonRoot: false
        runAsUser: 0
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities:
          drop: [ALL]
          add: [CHOWN]
      volumeMounts:
        - {name: data, mountPath: /var/lib/orchestrator-agent}
  {{- end }}
  containers:
    - name: agent
      image: {{ include "orchestrator.image" (dict "root" $root "image" "agent") | quote }}
      imagePullPolicy: {{ $root.Values.images.agent.pullPolicy }}
      {{- if .boxed }}
      command:
        - tini
        - --
        - setpriv
        - --no-new-privs
        - --inh-caps={{ include "orchestrator.boxCapabilities" $root }}
        - --bounding-set={{ include "orchestrator.boxCapabilities" $root }}
        - --
        - orch
      {{- else }}
      command: [tini, --, orch]
      {{- end }}
      # --yes: whoever installs this offers the machine.
      args: [worker, join, --config, /etc/orchestrator/agent/worker.toml, --yes]
      env:
        - name: ORCH_WORKER_NAME
          valueFrom:
            fieldRef:
              fieldPath: {{ .nameFrom | quote }}
        # For `kubectl exec … -- orch worker …`.
        - name: ORCH_WORKER_DATA_DIR
          value: /var/lib/orchestrator-agent/data
        - name: HOME
          value: /var/lib/orchestrator-agent
        {{- with $root.Values.agents.packageIndex }}
        - name: UV_DEFAULT_INDEX
          value: {{ . | quote }}
        {{- end }}
        {{- if $part.joinTokens.existingSecret }}
        # Needed at the first start only.
        - name: ORCH_WORKER_TOKEN_FILE
          value: /etc/orchestrator/join/$(ORCH_WORKER_NAME)
        {{- end }}
        {{- if not .boxed }}
        # Pods reach each other by no overlay, so each is a zone, and serves clusters of one machine.
        - name: ORCH_WORKER_ZONE
          value: $(ORCH_WORKER_NAME)
        {{- end }}
        {{- if .readsNode }}
        - name: ORCH_NODE_NAME
          valueFrom:
            fieldRef:
              fieldPath: spec.nodeName
        {{- end }}
        {{- if and (eq .component "worker") (not (hasKey (($part.resources).limits | default dict) "nvidia.com/gpu")) }}
        # Else the device plugin says so.
        - name: NVIDIA_VISIBLE_DEVICES
          value: all
        - name: NVIDIA_DRIVER_CAPABILITIES
          value: compute,utility
        {{- end }}
      # No liveness probe: one that errs would end tenants' jobs, and an agent that ends is started again anyway.
      # Ready: it has joined and listens to its owner.
      readinessProbe:
        exec:
          command: [test, -S, /var/lib/orchestrator-agent/data/agent.sock]
        periodSeconds: 10
        timeoutSeconds: 5
      resources:
        {{- toYaml ($part.resources | default dict) | nindent 8 }}
      securityContext:
        {{- if .boxed }}
        # Namespaces, mounts, loop devices, control groups and forwarding take a pod that sees the node's. The command
        # gives up at once what boxes do not need.
        privileged: true
        runAsUser: 0
        readOnlyRootFilesystem: true
        {{- else }}
        {{- include "orchestrator.containerSecurity" $root | nindent 8 }}
        {{- end }}
      volumeMounts:
        - {name: data, mountPath: /var/lib/orchestrator-agent}
        - {name: settings, mountPath: /etc/orchestrator/agent, readOnly: true}
        {{- if $part.joinTokens.existingSecret }}
        - {name: join-tokens, mountPath: /etc/orchestrator/join, readOnly: true}
        {{- end }}
        {{- if ($part.webhook).existingSecret }}
        - {name: webhook, mountPath: /etc/orchestrator/webhook, readOnly: true}
        {{- end }}
        - {name: tmp, mountPath: /tmp}
        - {name: run, mountPath: /run}
        {{- if .boxed }}
        - {name: dev, mountPath: /dev}
        {{- else }}
        - {name: shm, mountPath: /dev/shm}
        {{- end }}
  volumes:
    {{- with .data }}
    - name: data
      {{- toYaml . | nindent 6 }}
    {{- end }}
    - name: settings
      configMap:
        name: {{ $name }}-{{ .component }}
    {{- with $part.joinTokens.existingSecret }}
    - name: join-tokens
      secret:
        secretName: {{ . | quote }}
        defaultMode: {{ ternary 0400 0440 $.boxed }}
        # Who has joined needs none any more; who has not says so and tries again.
        optional: true
    {{- end }}
    {{- with ($part.webhook).existingSecret }}
    - name: webhook
      secret:
        secretName: {{ . | quote }}
        defaultMode: {{ ternary 0400 0440 $.boxed }}
        items:
          - {key: {{ $part.webhook.key | quote }}, path: url}
    {{- end }}
    - name: tmp
      emptyDir: {}
    - name: run
      emptyDir: {}
    {{- if .boxed }}
    # Loop devices and GPUs that appear later are seen, too.
    - name: dev
      hostPath: {path: /dev, type: Directory}
    {{- else }}
    - name: shm
      emptyDir: {medium: Memory, sizeLimit: {{ $part.sharedMemory | quote }}}
    {{- end }}
{{- end -}}
