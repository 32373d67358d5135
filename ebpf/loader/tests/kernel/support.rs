// SPDX-License-Identifier: Apache-2.0
//! Network namespaces without names, a cgroup, a bpffs and sockets; all gone with their owner.

use std::{
    fmt::Display,
    fs::{self, File},
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, BorrowedFd},
    panic::resume_unwind,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use culvert_ebpf_loader::{Exclusions, Node, NodeOptions, PodOptions};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};
use socket2::{Domain, Protocol, Socket, Type};

pub const OUT: u32 = 0x0200_0000;
pub const IN: u32 = 0x0100_0000;
const MASK: u32 = 0x0f00_0000;

/// Longer than anything here takes, so that a mistake fails instead of hanging.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// For what must not arrive.
pub const IMPATIENCE: Duration = Duration::from_millis(300);

pub trait Must<T> {
    fn must(self, what: &str) -> T;
}

impl<T, E: Display> Must<T> for Result<T, E> {
    fn must(self, what: &str) -> T {
        self.unwrap_or_else(|error| panic!("{what}: {error}"))
    }
}

pub fn addr(text: &str) -> SocketAddr {
    text.parse().must(text)
}

/// Runs on a thread of its own, whose namespaces and cgroup nobody else gets.
fn apart<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| scope.spawn(f).join()).unwrap_or_else(|panic| resume_unwind(panic))
}

/// A network namespace.
pub struct Net(File);

impl Net {
    pub fn new() -> Self {
        let net = apart(|| {
            unshare(CloneFlags::CLONE_NEWNET).must("unshare");
            Self(File::open("/proc/thread-self/ns/net").must("open the namespace"))
        });
        net.ip("link set lo up");
        net
    }

    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        apart(|| {
            setns(&self.0, CloneFlags::CLONE_NEWNET).must("setns");
            f()
        })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    pub fn ip(&self, args: &str) {
        let output = self.run(|| Command::new("ip").args(args.split(' ')).output());
        let output = output.must("run ip");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ip {args}: {stderr}");
    }

    pub fn cookie(&self) -> u64 {
        self.run(|| tcp(Domain::IPV4).cookie_of_netns())
    }

    /// Both ends of a veth pair, with addresses `10.0.0.<n>` and `fd00::<n>`.
    pub fn wire(&self, other: &Self) {
        self.run(|| {
            let path = "/proc/thread-self/ns/net";
            let theirs = format!("/proc/{}/fd/{}", std::process::id(), raw(&other.0));
            assert!(Path::new(path).exists());
            let args = [
                "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns",
            ];
            let output = Command::new("ip")
                .args(args)
                .arg(theirs)
                .output()
                .must("run ip");
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "ip link add: {stderr}");
        });
        for (net, n) in [(self, 1), (other, 2)] {
            net.ip(&format!("addr add 10.0.0.{n}/24 dev eth0"));
            net.ip(&format!("addr add fd00::{n}/64 dev eth0 nodad"));
            net.ip("link set eth0 up");
        }
    }

    /// What the agent does in a pod of the addresses `10.0.0.1` and `fd00::1`.
    pub fn route_marks(&self) {
        for (family, source) in [("-4", "10.0.0.1"), ("-6", "fd00::1")] {
            self.ip(&format!("{family} rule add pref 1 lookup local"));
            self.ip(&format!("{family} rule del pref 0 lookup local"));
            self.ip(&format!(
                "{family} rule add pref 0 fwmark {IN}/{MASK} lookup 17100"
            ));
            self.ip(&format!(
                "{family} rule add pref 100 fwmark {OUT}/{MASK} lookup 17101"
            ));
            self.ip(&format!(
                "{family} route add local default dev lo table 17100"
            ));
            self.ip(&format!(
                "{family} route add local default dev lo src {source} table 17101"
            ));
        }
        self.run(|| {
            for name in [
                "ipv4/tcp_fwmark_accept",
                "ipv4/fwmark_reflect",
                "ipv6/fwmark_reflect",
            ] {
                fs::write(format!("/proc/sys/net/{name}"), "1").must(name);
            }
        });
    }
}

fn raw(fd: &impl std::os::fd::AsRawFd) -> i32 {
    fd.as_raw_fd()
}

trait NetnsCookie {
    fn cookie_of_netns(&self) -> u64;
}

impl NetnsCookie for Socket {
    fn cookie_of_netns(&self) -> u64 {
        let mut cookie = 0_u64;
        let mut len = 8;
        // SAFETY: SO_NETNS_COOKIE writes eight bytes.
        let result = unsafe {
            nix::libc::getsockopt(
                raw(self),
                nix::libc::SOL_SOCKET,
                71,
                (&raw mut cookie).cast(),
                &raw mut len,
            )
        };
        assert_eq!(result, 0, "SO_NETNS_COOKIE");
        cookie
    }
}

/// A cgroup of threads: a thread that joins it makes sockets that belong to it.
pub struct Cgroup(PathBuf);

static CGROUPS: AtomicUsize = AtomicUsize::new(0);

impl Cgroup {
    pub fn new() -> Self {
        let n = CGROUPS.fetch_add(1, Ordering::Relaxed);
        let path = own_cgroup().join(format!("culvert-test-{}-{n}", std::process::id()));
        make_threaded(&path);
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Removes it, and what is of its name next is another one, as when systemd restarts a unit.
    pub fn make_again(&self) {
        self.remove();
        make_threaded(&self.0);
    }

    pub fn remove(&self) {
        // A thread that was joined may not be reaped yet.
        for _ in 0..100 {
            match fs::remove_dir(&self.0) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                    thread::sleep(Duration::from_millis(10));
                }
                _ => return,
            }
        }
    }

    /// Runs on a thread in this cgroup and a network namespace.
    pub fn run<T: Send>(&self, net: &Net, f: impl FnOnce() -> T + Send) -> T {
        net.run(|| {
            let tid = nix::unistd::gettid().to_string();
            fs::write(self.0.join("cgroup.threads"), tid).must("join the cgroup");
            f()
        })
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        self.remove();
    }
}

fn make_threaded(path: &Path) {
    fs::create_dir(path).must("make a cgroup");
    fs::write(path.join("cgroup.type"), "threaded").must("make the cgroup threaded");
}

fn own_cgroup() -> PathBuf {
    let mounts = fs::read_to_string("/proc/mounts").must("read the mounts");
    let cgroup2 = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&"cgroup2"))
        .unwrap_or_else(|| panic!("no cgroup2 is mounted"));
    let own = fs::read_to_string("/proc/self/cgroup").must("read the cgroup");
    let own = own
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .unwrap_or_default();
    Path::new(cgroup2[1]).join(own)
}

/// A BPF file system.
pub struct Bpffs(tempfile::TempDir);

impl Bpffs {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().must("make a directory");
        mount(
            Some("bpf"),
            dir.path(),
            Some("bpf"),
            MsFlags::empty(),
            None::<&str>,
        )
        .must("mount a bpffs");
        Self(dir)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        if let Err(error) = umount2(self.0.path(), MntFlags::MNT_DETACH) {
            eprintln!("could not unmount {}: {error}", self.0.path().display());
        }
    }
}

/// A TCP socket with the flags of std's.
pub fn tcp(domain: Domain) -> Socket {
    Socket::new(domain, Type::STREAM, Some(Protocol::TCP)).must("make a socket")
}

pub fn domain(addr: &SocketAddr) -> Domain {
    Domain::for_address(*addr)
}

/// Connects a socket; blocking, but not for ever.
pub fn connect(socket: &Socket, to: &str) -> io::Result<()> {
    socket.connect_timeout(&addr(to).into(), PATIENCE)
}

/// Connects a new socket of the calling thread's namespace and cgroup.
pub fn dial(to: &str) -> io::Result<TcpStream> {
    TcpStream::connect_timeout(&addr(to), PATIENCE)
}

/// A listener.
pub struct Ear(pub TcpListener);

impl Ear {
    /// As an application makes it.
    pub fn plain(at: &str) -> Self {
        Self(TcpListener::bind(addr(at)).must(at))
    }

    /// As the agent makes it: of loopback, transparent.
    pub fn transparent(domain: Domain, mark: u32) -> Self {
        let socket = tcp(domain);
        let at = if domain == Domain::IPV4 {
            socket.set_ip_transparent_v4(true).must("IP_TRANSPARENT");
            "127.0.0.1:0"
        } else {
            transparent_v6(&socket);
            "[::1]:0"
        };
        socket.set_mark(mark).must("SO_MARK");
        socket.bind(&addr(at).into()).must("bind");
        socket.listen(16).must("listen");
        Self(socket.into())
    }

    pub fn accept(&self) -> TcpStream {
        self.wait(PATIENCE)
            .unwrap_or_else(|| panic!("nobody came to {:?}", self.0))
    }

    pub fn hears_nothing(&self) -> bool {
        self.wait(IMPATIENCE).is_none()
    }

    fn wait(&self, patience: Duration) -> Option<TcpStream> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let timeout = PollTimeout::try_from(patience).must("time-out");
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut fds, timeout).must("poll");
        (ready == 1).then(|| self.0.accept().must("accept").0)
    }
}

pub fn transparent_v6(socket: &Socket) {
    let on = 1_i32;
    // SAFETY: IPV6_TRANSPARENT (75) reads four bytes.
    let result = unsafe {
        nix::libc::setsockopt(
            raw(socket),
            nix::libc::SOL_IPV6,
            75,
            (&raw const on).cast(),
            4,
        )
    };
    assert_eq!(result, 0, "IPV6_TRANSPARENT");
}

/// `connect(AF_UNSPEC)`: the socket can connect again.
pub fn disconnect(socket: &Socket) {
    let unspec = nix::libc::sockaddr {
        sa_family: 0,
        sa_data: [0; 14],
    };
    // SAFETY: sixteen bytes.
    let result = unsafe { nix::libc::connect(raw(socket), &raw const unspec, 16) };
    assert_eq!(result, 0, "connect(AF_UNSPEC)");
}

/// The listeners of a pod.
pub struct Ears {
    pub out4: Ear,
    pub in4: Ear,
    pub out6: Ear,
    pub in6: Ear,
}

impl Ears {
    pub fn new(pod: &Net) -> Self {
        pod.run(|| Self {
            out4: Ear::transparent(Domain::IPV4, 0),
            in4: Ear::transparent(Domain::IPV4, 0),
            out6: Ear::transparent(Domain::IPV6, 0),
            in6: Ear::transparent(Domain::IPV6, 0),
        })
    }

    pub fn fds(&self) -> [Option<BorrowedFd<'_>>; 4] {
        let Self {
            out4,
            in4,
            out6,
            in6,
        } = self;
        [out4, in4, out6, in6].map(|ear| Some(ear.0.as_fd()))
    }
}

/// One steered pod with the addresses `10.0.0.1` and `fd00::1`, and the wire that it hangs on.
pub struct World {
    pub node: Option<Node>,
    pub ears: Ears,
    pub pod: Net,
    pub wire: Net,
    pub cookie: u64,
    pub pods_cgroup: Cgroup,
    pub kubelet_cgroup: Cgroup,
    pub bpffs: Bpffs,
}

impl World {
    pub fn new() -> Self {
        Self::with(&Exclusions::default())
    }

    pub fn with(exclusions: &Exclusions) -> Self {
        let mut world = Self::without_agent();
        world.load();
        world.attach(exclusions);
        let cookie = world.cookie;
        world.node().enrol(cookie, exclusions).must("enrol");
        world
    }

    /// Nothing steers the pod.
    pub fn without_agent() -> Self {
        let (pod, wire) = (Net::new(), Net::new());
        pod.wire(&wire);
        pod.route_marks();
        Self {
            node: None,
            ears: Ears::new(&pod),
            cookie: pod.cookie(),
            pod,
            wire,
            pods_cgroup: Cgroup::new(),
            kubelet_cgroup: Cgroup::new(),
            bpffs: Bpffs::new(),
        }
    }

    pub fn options(&self) -> NodeOptions {
        NodeOptions {
            dir: self.bpffs.path().join("culvert"),
            cgroup: self.pods_cgroup.path().to_owned(),
            kubelet_cgroup: Some(self.kubelet_cgroup.path().to_owned()),
            debug: false,
        }
    }

    /// A new agent.
    pub fn load(&mut self) {
        self.node = None;
        self.node = Some(Node::load(&self.options()).must("load"));
    }

    pub fn attach(&mut self, exclusions: &Exclusions) {
        let own = [addr("10.0.0.1:0").ip(), addr("[fd00::1]:0").ip()];
        let options = PodOptions {
            cookie: self.cookie,
            netns: self.pod.fd(),
            listeners: self.ears.fds(),
            own: &own,
            exclusions,
        };
        let Some(node) = self.node.as_mut() else {
            panic!("no agent");
        };
        node.attach_pod(&options).must("attach");
    }

    pub fn node(&mut self) -> &mut Node {
        self.node.as_mut().unwrap_or_else(|| panic!("no agent"))
    }

    /// Runs as the application does.
    pub fn app<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        self.pods_cgroup.run(&self.pod, f)
    }

    /// A socket as the application makes it.
    pub fn app_socket(&self, domain: Domain) -> Socket {
        self.app(|| tcp(domain))
    }

    pub fn kubelet<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        self.kubelet_cgroup.run(&self.wire, f)
    }

    pub fn counters(&mut self) -> culvert_ebpf_loader::Counters {
        let cookie = self.cookie;
        self.node().counters(cookie).must("counters")
    }
}
