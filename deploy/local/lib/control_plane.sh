# shellcheck shell=bash
# etcd, kube-apiserver, controller manager, scheduler and cluster DNS. They share node a's network namespace.

CONTROL_PLANE_IP=10.77.0.1
API_URL=https://$CONTROL_PLANE_IP:6443

kubectl_admin() { kubectl --kubeconfig "$AO_KUBE/admin.yaml" "$@"; }

# etcd_arguments CLIENT-PORT PEER-PORT. No fsync: the data is worthless once the machine is down, and a slow disk
# would otherwise set the pace of every test.
etcd_arguments() {
  printf '%s\n' --name=local "--data-dir=$AO_STATE/etcd" --unsafe-no-fsync \
    "--listen-client-urls=http://127.0.0.1:$1" "--advertise-client-urls=http://127.0.0.1:$1" \
    "--listen-peer-urls=http://127.0.0.1:$2" "--initial-advertise-peer-urls=http://127.0.0.1:$2" \
    "--initial-cluster=local=http://127.0.0.1:$2" --log-level=warn --auto-compaction-retention=1h
}

audit_policy() {
  # Metadata level: microsecond times of each stage, the user agent and no body. It is the neutral instrument
  # with which tests count requests. What is written of our own objects is there as a whole: the tests of faults
  # hold it against the promises.
  write_file "$AO_STATE/audit-policy.yaml" <<'YAML'
apiVersion: audit.k8s.io/v1
kind: Policy
omitManagedFields: true
rules:
  - level: RequestResponse
    verbs: [create, update, patch]
    resources: [{group: agents.wearn.dev, resources: [agentruns, agentruns/status, codingtasks/status]}]
  - level: Metadata
YAML
}

# apiserver_arguments ADDRESS PORT ETCD-PORT
apiserver_arguments() {
  printf '%s\n' "--advertise-address=$1" "--bind-address=$1" "--secure-port=$2" "--etcd-servers=http://127.0.0.1:$3" \
    "--client-ca-file=$AO_PKI/ca.crt" "--tls-cert-file=$AO_PKI/apiserver.crt" "--tls-private-key-file=$AO_PKI/apiserver.key" \
    "--kubelet-client-certificate=$AO_PKI/apiserver-kubelet-client.crt" "--kubelet-client-key=$AO_PKI/apiserver-kubelet-client.key" \
    "--kubelet-certificate-authority=$AO_PKI/ca.crt" --kubelet-preferred-address-types=InternalIP \
    --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true \
    --service-account-issuer=https://kubernetes.default.svc "--service-account-key-file=$AO_PKI/sa.pub" \
    "--service-account-signing-key-file=$AO_PKI/sa.key" "--service-cluster-ip-range=$AO_SERVICE_CIDR" \
    "--audit-policy-file=$AO_STATE/audit-policy.yaml" "--audit-log-path=$AO_LOGS/audit.log" \
    --audit-log-maxsize=200 --audit-log-maxbackup=2
}

start_etcd() {
  local arguments
  mapfile -t arguments < <(etcd_arguments 2379 2380)
  mkdir -p "$AO_STATE/etcd"
  chmod 700 "$AO_STATE/etcd"
  start_daemon etcd nsenter --net=/run/netns/ao-a "$AO_BIN/etcd" "${arguments[@]}"
}

start_kube-apiserver() {
  local arguments
  mapfile -t arguments < <(apiserver_arguments "$CONTROL_PLANE_IP" 6443 2379)
  audit_policy
  start_daemon kube-apiserver nsenter --net=/run/netns/ao-a "$AO_BIN/kube-apiserver" "${arguments[@]}"
}

start_kube-controller-manager() {
  start_daemon kube-controller-manager nsenter --net=/run/netns/ao-a "$AO_BIN/kube-controller-manager" \
    --kubeconfig="$AO_KUBE/controller-manager.yaml" --leader-elect=false --use-service-account-credentials=true \
    --service-account-private-key-file="$AO_PKI/sa.key" --root-ca-file="$AO_PKI/ca.crt" \
    --cluster-cidr=10.244.0.0/16 --allocate-node-cidrs=false --bind-address=127.0.0.1 \
    --cluster-signing-cert-file="$AO_PKI/ca.crt" --cluster-signing-key-file="$AO_PKI/ca.key"
}

start_kube-scheduler() {
  start_daemon kube-scheduler nsenter --net=/run/netns/ao-a "$AO_BIN/kube-scheduler" \
    --kubeconfig="$AO_KUBE/scheduler.yaml" --leader-elect=false --bind-address=127.0.0.1
}

# CoreDNS runs as a process of node a, not as a pod: one image less, and names work before any pod does.
start_coredns() {
  # A block of its own, because the template plugin answers before the kubernetes plugin does.
  local other='template ANY ANY . {
        rcode NXDOMAIN
    }'
  # Only an open cluster forwards names that are not its own.
  [[ ! -f $AO_STATE/internet ]] || other='forward . /etc/resolv.conf'
  write_file "$AO_STATE/Corefile" <<COREFILE
cluster.local:53 10.in-addr.arpa:53 {
    bind $CONTROL_PLANE_IP
    errors
    kubernetes cluster.local 10.in-addr.arpa {
        kubeconfig $AO_KUBE/dns.yaml
        pods insecure
        ttl 5
    }
}
.:53 {
    bind $CONTROL_PLANE_IP
    errors
    $other
}
COREFILE
  start_daemon coredns nsenter --net=/run/netns/ao-a "$AO_BIN/coredns" -conf "$AO_STATE/Corefile"
}

dns_objects() {
  kubectl_admin apply -f - >/dev/null <<YAML
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: local-dns}
rules:
  - apiGroups: [""]
    resources: [endpoints, services, pods, namespaces]
    verbs: [list, watch]
  - apiGroups: [discovery.k8s.io]
    resources: [endpointslices]
    verbs: [list, watch]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: local-dns}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: local-dns}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: system:coredns}]
---
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system}
spec:
  clusterIP: $AO_DNS_IP
  ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53, protocol: TCP}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: kube-dns-local, namespace: kube-system, labels: {kubernetes.io/service-name: kube-dns}}
addressType: IPv4
ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53, protocol: TCP}]
endpoints: [{addresses: [$CONTROL_PLANE_IP]}]
YAML
}

api_ready() { kubectl_admin get --raw /readyz; }
namespace_ready() { kubectl_admin get namespace kube-system && kubectl_admin get serviceaccount -n default default; }

control_plane_up() {
  log "control plane: etcd, kube-apiserver, controller manager, scheduler, DNS"
  pki_control_plane "$CONTROL_PLANE_IP" 127.0.0.1
  pki_cluster "$API_URL"
  start_etcd
  start_kube-apiserver
  wait_daemon kube-apiserver 90 api_ready
  start_kube-controller-manager
  start_kube-scheduler
  start_coredns
  wait_daemon kube-controller-manager 60 namespace_ready
  dns_objects
}
