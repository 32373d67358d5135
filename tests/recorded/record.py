#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Records what a release says and keeps, for tests/tests/versions.rs and its like.

    tests/recorded/record.py RELEASE target/release

Run it as root in a checkout of the release, after `cargo build --release --workspace`. kinds.json and
abi.txt are those of the release before: where the tests say that a version was added, edit them.

The real processes run in a sandbox. Wrappers of culvert-proxy and culvert-cni put a tee into each of
their connections; what passes is written to tests/recorded/RELEASE, with the files that are kept.
"""
import ctypes, glob, json, os, shutil, signal, socket, ssl, subprocess, sys, threading, time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
NAME = "record"
BOX = f"/run/culvert/sandbox/{NAME}"
WORK = f"/tmp/culvert-{NAME}"
CONTROL = "culvert-control.culvert.serviceaccount.identity.culvert.cluster.local"


def note(file, **fields):
    """One line; appended in one write, so that processes don't mix theirs."""
    fd = os.open(f"{WORK}/out/{file}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.write(fd, (json.dumps(fields) + "\n").encode())
    os.close(fd)


# === the tee between an agent and its proxy ===

def pump_agent(frm, to, who):
    while True:
        data, fds, _, _ = socket.recv_fds(frm, 1 << 17, 253)
        if not data:
            to.close()
            return
        message = json.loads(data)
        kept = {}
        if message["type"] in ("key", "keep") and fds:
            kept["content"] = os.pread(fds[0], 1 << 16, 0).hex()
        note("agent-proxy.jsonl", **{"from": who, "fds": len(fds), "message": message}, **kept)
        socket.send_fds(to, [data], fds) if fds else to.send(data)
        for fd in fds:
            os.close(fd)


def tee_agent(real, path):
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen(8)

    def serve():
        while True:
            proxy, _ = listener.accept()
            agent = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                agent.connect(real)
            except OSError:  # The agent is not there: the proxy tries again.
                proxy.close()
                continue
            for args in ((agent, proxy, "agent"), (proxy, agent, "proxy")):
                threading.Thread(target=pump_agent, args=args, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()


# === the tee between a proxy and control ===

class Http2:
    """Finds the gRPC messages in one direction of a connection (RFC 9113 section 4.1)."""

    def __init__(self, who, connection, calls):
        self.who, self.connection, self.calls = who, connection, calls
        self.bytes, self.streams = b"", {}
        self.preface = 24 if who == "proxy" else 0

    def feed(self, data):
        self.bytes += data
        cut = min(self.preface, len(self.bytes))
        self.bytes, self.preface = self.bytes[cut:], self.preface - cut
        while len(self.bytes) >= 9 and len(self.bytes) >= 9 + self.length():
            length, kind, flags = self.length(), self.bytes[3], self.bytes[4]
            stream = int.from_bytes(self.bytes[5:9], "big") & 0x7FFFFFFF
            body, self.bytes = self.bytes[9 : 9 + length], self.bytes[9 + length :]
            if kind == 0:
                self.data(stream, body[1 : len(body) - body[0]] if flags & 8 else body)

    def length(self):
        return int.from_bytes(self.bytes[:3], "big")

    def data(self, stream, body):
        rest = self.streams.get(stream, b"") + body
        while len(rest) >= 5 and len(rest) >= 5 + int.from_bytes(rest[1:5], "big"):
            end = 5 + int.from_bytes(rest[1:5], "big")
            if self.who == "proxy":
                # Unlike CertifyRequest, WatchRequest is one field and no more.
                self.calls.setdefault(stream, "watch" if rest[5] != 0x0A or 7 + rest[6] == end else "certify")
            call = f"{self.connection}-{stream}"
            note(f"grpc-{self.calls[stream]}.jsonl", **{"call": call, "from": self.who, "bytes": rest[:end].hex()})
            rest = rest[end:]
        self.streams[stream] = rest


def pump_control(frm, to, parser):
    try:
        while data := frm.recv(1 << 16):
            parser.feed(data)
            to.sendall(data)
    except OSError:
        pass
    to.close()


def tee_control(real):
    host, port = real.rsplit(":", 1)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(f"{WORK}/tee.crt", f"{WORK}/tee.key")
    server.set_alpn_protocols(["h2"])
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    client.set_alpn_protocols(["h2"])
    listener = socket.create_server(("127.0.0.1", 0))

    def connection(plain):
        proxy = server.wrap_socket(plain, server_side=True)
        control = client.wrap_socket(socket.create_connection((host, int(port))))
        calls, name = {}, f"{os.getpid()}-{plain.fileno()}-{proxy.fileno()}"
        for frm, to, who in ((proxy, control, "proxy"), (control, proxy, "control")):
            args = (frm, to, Http2(who, name, calls))
            threading.Thread(target=pump_control, args=args, daemon=True).start()

    def serve():
        while True:
            plain, _ = listener.accept()
            threading.Thread(target=connection, args=(plain,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return listener.getsockname()[1]


def proxy(real, args):
    value = lambda flag: args.index(flag) + 1
    if args[value("--node")] == "n1":
        path = f"{WORK}/run/{os.getpid()}.sock"
        ready, told = os.pipe()
        if os.fork() == 0:
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
            tee_agent(args[value("--agent-socket")], path)
            os.write(told, str(tee_control(args[value("--control")])).encode())
            while True:
                signal.pause()
        port = os.read(ready, 16).decode()
        anchors = args[value("--trust-anchors")]
        while not os.path.exists(anchors):
            time.sleep(0.02)
        both = f"{WORK}/run/{os.getpid()}.pem"
        with open(both, "w") as out:
            out.write(open(anchors).read() + open(f"{WORK}/tee-ca.crt").read())
        for flag, new in (("--agent-socket", path), ("--control", f"127.0.0.1:{port}"), ("--trust-anchors", both)):
            args[value(flag)] = new
    os.execv(real, [real] + args)


# === the tee between the plugin and the agent ===

def plugin(real):
    config = json.loads(sys.stdin.read())
    env = {k: v for k, v in os.environ.items() if k.startswith("CNI_")}
    agent, path = config["agentSocket"], f"{WORK}/run/cni-{os.getpid()}.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(8)

    def serve():
        while True:
            stream, _ = listener.accept()
            try:
                to = socket.socket(socket.AF_UNIX)
                to.connect(agent)
                request = stream.makefile().readline()
                to.sendall(request.encode())
                answer = to.makefile().readline()
                note("cni.jsonl", env=env, request=json.loads(request), answer=json.loads(answer))
                stream.sendall(answer.encode())
            except OSError:
                pass
            stream.close()

    threading.Thread(target=serve, daemon=True).start()
    shown = subprocess.run([real], input=json.dumps(dict(config, agentSocket=path)).encode())
    os._exit(shown.returncode)


# === the session ===

def culvert(command, *args, ok=True):
    full = [f"{BIN}/culvert", "sandbox", command, "--name", NAME, *args]
    done = subprocess.run(full, capture_output=True, text=True)
    if ok and done.returncode != 0:
        raise SystemExit(f"{full}: {done.stdout}{done.stderr}")
    return done.stdout


def until(what, is_so):
    for _ in range(600):
        if is_so():
            return
        time.sleep(0.05)
    raise SystemExit(f"waited 30 s for {what}")


def lines(file):
    path = f"{WORK}/out/{file}"
    return [json.loads(line) for line in open(path)] if os.path.exists(path) else []


def said(who, kind, last=None):
    there = [line for line in lines("agent-proxy.jsonl") if line["from"] == who and line["message"]["type"] == kind]
    return [line for line in there if last is None or last(line["message"])]


def kept(name):
    """The agent's record of a pod of n1."""
    records = [json.load(open(file)) for file in glob.glob(f"{BOX}/nodes/n1/state/pods/*.json")]
    return [record for record in records if record["workload"]["name"] == name][0]


def apply(file, obj):
    os.makedirs(f"{WORK}/manifests", exist_ok=True)
    with open(f"{WORK}/{file}.tmp", "w") as out:
        json.dump(obj, out, indent=2)
    os.rename(f"{WORK}/{file}.tmp", f"{WORK}/manifests/{file}.json")


def pod(name, node, annotations):
    apply(f"serviceaccount-{name}", {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": "default"}})
    apply(f"pod-{name}", {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {"app": name}, "annotations": annotations},
        "spec": {"nodeName": node, "serviceAccountName": name,
                 "containers": [{"name": "app", "image": "none", "command": [f"{BIN}/culvert-testapp", "serve", "--listen", "7000=echo"]}]},
    })


def connect(frm, to, count=1):
    flags = ["--count", str(count), "--concurrent", str(min(count, 20))]
    def works():
        done = culvert("exec", frm, "--", f"{BIN}/culvert-testapp", "connect", to, *flags, ok=False)
        return done and json.loads(done)["succeeded"] == count
    until(f"{frm} to reach {to}", works)


def by_hand(command, name, **extra):
    """The plugin as a runtime calls it."""
    conflist = json.load(open(f"{BOX}/nodes/n1/cni/net.d/10-culvert.conflist"))
    config = dict(conflist["plugins"][1], cniVersion="1.1.0", name=conflist["name"], prevResult={"cniVersion": "1.0.0"}, **extra)
    env = dict(os.environ, CNI_COMMAND=command)
    if command not in ("STATUS", "GC"):
        env |= {"CNI_CONTAINERID": kept(name)["container_id"], "CNI_NETNS": f"/run/netns/cv-{NAME}-default-{name}", "CNI_IFNAME": "eth0",
                "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={name};K8S_POD_UID={kept(name)['workload']['uid']}"}
    done = subprocess.run([f"{WORK}/bin/culvert-cni"], input=json.dumps(config).encode(), env=env, capture_output=True)
    if done.returncode != 0:
        raise SystemExit(f"{command}: {done.stdout}{done.stderr}")


def server_ip():
    shown = json.loads(subprocess.check_output(["ip", "-n", f"cv-{NAME}-default-server", "-j", "-4", "addr", "show", "scope", "global"]))
    return [link["addr_info"][0]["local"] for link in shown if link.get("addr_info")][0]


def session():
    mesh = {"culvert.io/inject": "enabled"}
    pod("client", "n1", mesh | {"config.linkerd.io/skip-outbound-ports": "9999"})
    pod("server", "n2", mesh | {"culvert.io/default-inbound-policy": "all-authenticated"})
    pod("plain", "n1", {})
    pod("unmeshed", "n2", {})
    apply("service-server", {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "server", "namespace": "default"},
                             "spec": {"selector": {"app": "server"}, "clusterIP": "10.96.0.77", "ports": [{"name": "echo", "port": 7000}]}})
    culvert("up", "-f", f"{WORK}/manifests", "--nodes", "2", "--bin-dir", f"{WORK}/bin")
    connect("client", "10.96.0.77:7000")
    connect("client", f"{server_ip()}:7000")
    culvert("exec", "client", "--", f"{BIN}/culvert-testapp", "connect", "10.96.0.250:7000", "--patience", "1", ok=False)
    until("a key", lambda: said("proxy", "keep"))
    before = len(said("agent", "hello"))
    culvert("kill", "proxy", "--node", "n1")
    until("a snapshot with a key", lambda: len(said("agent", "hello")) > before and said("agent", "key"))
    connect("client", "10.96.0.77:7000")
    pod("plain", "n1", mesh)
    until("a live pod", lambda: said("agent", "pod", lambda m: m["live"]))
    loopback = ["ip", "-n", f"cv-{NAME}-default-plain", "addr", "add", "10.99.0.9/32", "dev", "lo"]
    subprocess.check_call(loopback)
    until("addresses", lambda: said("agent", "addresses"))
    connect("plain", f"{server_ip()}:7000", 40)
    pod("plain", "n1", {})
    until("a withdrawal", lambda: said("proxy", "withdrawn") and said("agent", "remove"))
    for command in ("STATUS", "CHECK"):
        by_hand(command, "client")
    listed = [{"containerID": kept(name)["container_id"], "ifname": "eth0"} for name in ("client", "plain")]
    by_hand("GC", "client", **{"cni.dev/valid-attachments": listed})
    until("a pod left", lambda: kept("plain")["phase"] == "unmeshed")
    culvert("kill", "agent", "--node", "n1", "--hold")
    by_hand("ADD", "plain")
    keep_state()
    culvert("start", "agent", "--node", "n1")
    os.remove(f"{WORK}/manifests/pod-plain.json")
    until("DEL", lambda: [line for line in lines("cni.jsonl") if line["request"]["command"]["command"] == "del"])


def keep_state():
    state = f"{WORK}/out/state"
    shutil.copytree(f"{BOX}/nodes/n1/state", f"{state}/agent", ignore=shutil.ignore_patterns("lock"))
    shutil.copytree(f"{BOX}/nodes/n1/proxy-state", f"{state}/proxy")
    shutil.copytree(f"{BOX}/control", f"{state}/control")
    shutil.copytree(f"{BOX}/manifests", f"{state}/manifests")
    pins = []
    for at, _, files in os.walk(f"{BOX}/nodes/n1/bpf"):
        pins += [os.path.relpath(os.path.join(at, file), f"{BOX}/nodes/n1/bpf") for file in files]
    cookies = {os.path.basename(d): "COOKIE" for d in glob.glob(f"{BOX}/nodes/n1/bpf/v*/pods/*")}
    pins = ["/".join(cookies.get(part, part) for part in pin.split("/")) for pin in pins if not pin.endswith(".debug")]
    with open(f"{WORK}/out/pins.txt", "w") as out:
        out.write("\n".join(sorted(set(pins))) + "\n")
    renew(f"{state}/control")


def renew(ca):
    """A century instead of a year, or the tests would fail next year: the keys and names are the release's."""
    days = ["-days", "36500"]
    run = lambda *args: subprocess.check_call(["openssl", "x509", *args], stderr=subprocess.DEVNULL)
    run("-in", f"{ca}/trust-anchors.pem", "-signkey", f"{ca}/anchor.key", *days, "-out", f"{ca}/new.pem")
    os.rename(f"{ca}/new.pem", f"{ca}/trust-anchors.pem")
    copy, request = ["-copy_extensions", "copyall"], f"{WORK}/issuer.csr"
    run("-x509toreq", "-in", f"{ca}/issuer.crt", "-signkey", f"{ca}/issuer.key", *copy, "-out", request)
    signer = ["-CA", f"{ca}/trust-anchors.pem", "-CAkey", f"{ca}/anchor.key", "-set_serial", "2"]
    run("-req", "-in", request, *signer, *copy, *days, "-out", f"{ca}/new.pem")
    os.rename(f"{ca}/new.pem", f"{ca}/issuer.crt")


def prepare():
    shutil.rmtree(WORK, ignore_errors=True)
    for name in ("out", "run", "bin"):
        os.makedirs(f"{WORK}/{name}")
        os.chmod(f"{WORK}/{name}", 0o777)
    shutil.copy(__file__, f"{WORK}/record.py")
    for name in ("culvert", "culvert-agent", "culvert-control"):
        os.symlink(f"{BIN}/{name}", f"{WORK}/bin/{name}")
    for name in ("culvert-proxy", "culvert-cni"):
        with open(f"{WORK}/bin/{name}", "w") as out:
            out.write(f'#!/bin/sh\nexec /usr/bin/python3 {WORK}/record.py {name} {BIN}/{name} "$@"\n')
        os.chmod(f"{WORK}/bin/{name}", 0o755)
    ca = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
    subprocess.check_call([*ca, "-subj", "/CN=tee", "-keyout", f"{WORK}/tee-ca.key", "-out", f"{WORK}/tee-ca.crt"], stderr=subprocess.DEVNULL)
    subprocess.check_call([*ca, "-subj", "/CN=tee control", "-addext", f"subjectAltName=DNS:{CONTROL}", "-addext", "basicConstraints=critical,CA:FALSE",
                           "-CA", f"{WORK}/tee-ca.crt", "-CAkey", f"{WORK}/tee-ca.key", "-keyout", f"{WORK}/tee.key", "-out", f"{WORK}/tee.crt"], stderr=subprocess.DEVNULL)
    os.chmod(f"{WORK}/tee.key", 0o644)


def record(release):
    prepare()
    try:
        session()
    finally:
        culvert("down", ok=False)
    out = f"{WORK}/out"
    shutil.copy(f"{ROOT}/api/proto/control.proto", out)
    os.makedirs(f"{out}/ebpf")
    for name in ("node", "pod"):
        shutil.copy(f"{ROOT}/ebpf/programs/{name}.bpf.o", f"{out}/ebpf")
    last = max(glob.glob(f"{HERE}/*/kinds.json"), key=os.path.getmtime)
    for name in ("kinds.json", "abi.txt"):
        shutil.copy(f"{os.path.dirname(last)}/{name}", out)
    shutil.rmtree(f"{HERE}/{release}", ignore_errors=True)
    shutil.copytree(out, f"{HERE}/{release}")
    subprocess.check_call(["chmod", "-R", "u+rwX,go+rX", f"{HERE}/{release}"])
    shutil.rmtree(WORK)


if __name__ == "__main__":
    if sys.argv[1] == "culvert-proxy":
        proxy(sys.argv[2], sys.argv[3:])
    elif sys.argv[1] == "culvert-cni":
        plugin(sys.argv[2])
    else:
        BIN = os.path.abspath(sys.argv[2])
        record(sys.argv[1])
