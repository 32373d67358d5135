// SPDX-License-Identifier: Apache-2.0
//! What steers one pod: sysctls, rules and routes, listeners, `sk_lookup`, the connect hook.

pub mod addresses;
pub mod listeners;
pub mod marked;
pub mod routes;
mod rtnl;
mod rule;
pub mod sockets;
pub mod sysctl;

use std::os::fd::AsFd;

use culvert_ebpf_loader::{self as loader, PodOptions};

use self::{addresses::Own, listeners::Listeners, routes::Tables, rtnl::Rtnl};
use crate::{
    desired::exclusions::Exclusions,
    ebpf::{self, Ebpf},
    netns::{self, Netns},
};

/// A namespace and the netlink connection into it.
#[derive(Debug)]
pub struct Namespace {
    netns: Netns,
    rtnl: Rtnl,
}

/// A steered pod. Dropping it closes the agent's copies of the listeners and nothing else: the
/// pod stays steered.
#[derive(Debug)]
pub struct Enrolment {
    namespace: Namespace,
    own: Own,
    tables: Tables,
    listeners: Listeners,
    exclusions: loader::Exclusions,
    /// Whether all is as `own` says. If not, the pod is to be cut off.
    settled: bool,
}

/// What of a pod is not as [`Enrolment::set_up`] left it, in words.
#[derive(Debug, Default)]
pub struct Differences {
    /// Of its rules, routes and sysctls.
    pub network: Vec<String>,
    /// Of its programs and listeners.
    pub programs: Vec<String>,
}

/// A pod could not be steered, or let go of.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The namespace.
    #[error(transparent)]
    Netns(#[from] netns::Error),
    /// Netlink.
    #[error(transparent)]
    Netlink(#[from] rtnl::Error),
    /// The rules and routes.
    #[error(transparent)]
    Routes(#[from] routes::Error),
    /// The sysctls.
    #[error(transparent)]
    Sysctl(#[from] sysctl::Error),
    /// The listeners.
    #[error("could not make the pod's listeners: {0}")]
    Listeners(#[source] std::io::Error),
    /// The programs.
    #[error(transparent)]
    Ebpf(#[from] ebpf::Error),
    /// Asking for the pod's open connections.
    #[error("could not list the pod's connections: {0}")]
    Diag(#[source] std::io::Error),
}

// === impl Namespace ===

impl Namespace {
    /// Opens a netlink connection into the namespace.
    pub async fn open(netns: Netns) -> Result<Self, Error> {
        let rtnl = Rtnl::open(&netns).await?;
        Ok(Self { netns, rtnl })
    }

    /// The namespace itself.
    pub const fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Whether a connection through the proxy is left.
    pub async fn has_marked_connections(&self) -> Result<bool, Error> {
        self.netns.run(marked::any).await?.map_err(Error::Diag)
    }

    /// Removes rules and routes and puts the sysctls back.
    pub async fn restore(&self, before: &sysctl::Before) -> Result<(), Error> {
        let routes = routes::remove_all(&self.rtnl).await;
        let before = before.clone();
        let sysctls = self.netns.run(move || sysctl::restore(&before)).await?;
        routes?;
        Ok(sysctls?)
    }
}

// === impl Differences ===

impl Differences {
    /// All of them.
    pub fn all(&self) -> Vec<String> {
        [&self.network[..], &self.programs].concat()
    }

    /// Whether all is as it was left.
    pub const fn is_empty(&self) -> bool {
        self.network.is_empty() && self.programs.is_empty()
    }
}

// === impl Enrolment ===

impl Enrolment {
    /// Steers a pod. What was done is undone when a later step fails, unless the pod was
    /// steered before: then it fails closed, because the listeners of its programs are gone.
    pub async fn set_up(
        namespace: Namespace,
        ebpf: &Ebpf,
        exclusions: &Exclusions,
    ) -> Result<Self, (Namespace, Error)> {
        let exclusions = loader::Exclusions::from(exclusions);
        match prepare(&namespace).await {
            Ok((own, tables, listeners)) => {
                let enrolment = Self {
                    namespace,
                    own,
                    tables,
                    listeners,
                    exclusions,
                    settled: true,
                };
                match enrolment.attach(ebpf).await {
                    Ok(()) => Ok(enrolment),
                    Err(error) => Err((enrolment.namespace, error)),
                }
            }
            Err(error) => Err((namespace, error)),
        }
    }

    /// The namespace.
    pub const fn netns(&self) -> &Netns {
        self.namespace.netns()
    }

    /// The pod's own addresses.
    pub const fn own(&self) -> &Own {
        &self.own
    }

    /// The pod's listeners.
    pub const fn listeners(&self) -> &Listeners {
        &self.listeners
    }

    /// Waits until an address, rule, route or link may have changed.
    pub async fn changed(&mut self) -> Option<()> {
        self.namespace.rtnl.changed().await
    }

    /// Whether the last change of the rules, routes or programs succeeded.
    pub const fn is_settled(&self) -> bool {
        self.settled
    }

    /// Looks at the addresses and the pod's own routes again, and says whether there is what the proxy does not know yet.
    pub async fn refresh(&mut self, ebpf: &Ebpf) -> Result<bool, Error> {
        let (own, tables) = look(&self.namespace.rtnl).await?;
        if self.settled && own == self.own && tables == self.tables {
            return Ok(false);
        }
        self.settle(ebpf, own, tables).await
    }

    /// Sets again what [`Self::differences`] found, but for the listeners. The addresses that the
    /// proxy knows stay.
    pub async fn repair(&mut self, ebpf: &Ebpf, found: &Differences) -> Result<(), Error> {
        self.settled = false;
        self.namespace.rtnl.loopback_up().await?;
        self.netns().run(sysctl::set).await??;
        routes::apply(&self.namespace.rtnl, &self.tables).await?;
        self.settled = true;
        if found.programs.is_empty() {
            return Ok(());
        }
        self.attach(ebpf)
            .await
            .inspect_err(|_| self.settled = false)
    }

    async fn settle(&mut self, ebpf: &Ebpf, own: Own, tables: Tables) -> Result<bool, Error> {
        let was_settled = std::mem::replace(&mut self.settled, false);
        routes::apply(&self.namespace.rtnl, &tables).await?;
        let same = own.all == self.own.all;
        if !was_settled || !same {
            let (cookie, all) = (self.netns().cookie().0, own.all.clone());
            let set = move |node: &mut loader::Node| {
                node.set_own(cookie, &all)?;
                node.set_up(cookie, true)
            };
            ebpf.run(set).await?;
        }
        (self.own, self.tables) = (own, tables);
        self.settled = true;
        Ok(!same)
    }

    /// Replaces what is left alone.
    pub async fn exclude(&mut self, ebpf: &Ebpf, exclusions: &Exclusions) -> Result<(), Error> {
        self.exclusions = exclusions.into();
        self.attach(ebpf).await
    }

    /// What is not as [`Self::set_up`] left it.
    pub async fn differences(&self, ebpf: &Ebpf) -> Result<Differences, Error> {
        let mut network = routes::differences(&self.namespace.rtnl, &self.tables).await?;
        network.extend(self.netns().run(sysctl::differences).await??);
        let programs = self.different_programs(ebpf).await?;
        Ok(Differences { network, programs })
    }

    async fn different_programs(&self, ebpf: &Ebpf) -> Result<Vec<String>, Error> {
        let mut all = Vec::new();
        if !self.settled {
            all.push("the pod is cut off, see the agent's log".to_owned());
        }
        let cookie = self.netns().cookie().0;
        let look =
            move |node: &mut loader::Node| Ok((node.is_pinned(cookie), node.steers(cookie)?));
        let (pinned, (enrolled, up)) = ebpf.run(look).await?;
        if !pinned {
            all.push("the pod's sk_lookup program is not pinned".to_owned());
        }
        if !enrolled {
            all.push("the connect hook does not know the pod".to_owned());
        }
        if enrolled && up != self.settled {
            all.push(format!("the connect hook has the pod's up flag {up}"));
        }
        if !self.listeners.are_listening() {
            all.push("a listener of the pod no longer listens".to_owned());
        }
        Ok(all)
    }

    /// Closes the agent's copies of the listeners.
    pub fn into_namespace(self) -> Namespace {
        self.namespace
    }

    /// `sk_lookup` before the connect hook: a connection that is marked has where to go.
    async fn attach(&self, ebpf: &Ebpf) -> Result<(), Error> {
        let netns = self.netns().clone();
        let (own, listeners) = (self.own.all.clone(), self.listeners.clone());
        let (exclusions, up) = (self.exclusions.clone(), self.settled);
        let attach = move |node: &mut loader::Node| {
            let cookie = netns.cookie().0;
            node.attach_pod(&PodOptions {
                cookie,
                netns: netns.as_fd(),
                listeners: listeners.slots(),
                own: &own,
                exclusions: &exclusions,
            })?;
            node.enrol(cookie, &exclusions)?;
            node.set_up(cookie, up)
        };
        Ok(ebpf.run(attach).await?)
    }
}

/// Ends the steering of new connections; that there was none is fine. The connect hook goes
/// first, so that no connection is marked that nobody catches.
pub async fn detach(ebpf: &Ebpf, netns: &Netns) -> Result<(), Error> {
    let cookie = netns.cookie().0;
    let detach = move |node: &mut loader::Node| {
        let withdrawn = node.withdraw(cookie);
        node.detach_pod(cookie)?;
        withdrawn
    };
    Ok(ebpf.run(detach).await?)
}

async fn prepare(namespace: &Namespace) -> Result<(Own, Tables, Listeners), Error> {
    let Namespace { netns, rtnl } = namespace;
    rtnl.loopback_up().await?;
    let (own, tables) = look(rtnl).await?;
    netns.run(sysctl::set).await??;
    routes::apply(rtnl, &tables).await?;
    Ok((own, tables, make_listeners(netns).await?))
}

async fn look(rtnl: &Rtnl) -> Result<(Own, Tables), Error> {
    let own = Own::pick(&rtnl.addresses().await?);
    let tables = routes::look(rtnl, &own).await?;
    Ok((own, tables))
}

async fn make_listeners(netns: &Netns) -> Result<Listeners, Error> {
    netns.run(Listeners::make).await?.map_err(Error::Listeners)
}
