// SPDX-License-Identifier: Apache-2.0
mod connections;
mod measured;
mod readiness;
mod simulation;
mod waiting;

use culvert_api::{
    identity::Identity,
    workload::{PodUid, Workload},
};

use super::*;

fn endpoint(last: u8) -> Endpoint {
    let name = format!("cart-{last}");
    Endpoint {
        addr: SocketAddr::from(([10, 0, 0, last], 80)),
        workload: Workload {
            uid: PodUid(name.clone()),
            namespace: "shop".into(),
            name,
            service_account: "cart".into(),
            owner_kind: "deployment".into(),
            owner_name: "cart".into(),
        },
        node: "a".into(),
        identity: Identity {
            trust_domain: "cluster.local".into(),
            namespace: "shop".into(),
            service_account: "cart".into(),
        },
        meshed: true,
        protocol: None,
    }
}

fn endpoints(numbers: impl IntoIterator<Item = u8>) -> Vec<Endpoint> {
    numbers.into_iter().map(endpoint).collect()
}

fn balancer(numbers: impl IntoIterator<Item = u8>) -> Balancer {
    let balancer = Balancer::default();
    balancer.update(&endpoints(numbers), true);
    balancer
}

async fn ready(balancer: &Balancer) -> Choice {
    let choice = balancer.ready(&[]).await;
    choice.unwrap_or_else(|unready| panic!("{unready:?}"))
}

/// What [`Balancer::ready`] says without waiting; none if it waits.
async fn at_once(balancer: &Balancer, tried: &[SocketAddr]) -> Option<Result<Choice, Unready>> {
    tokio::select! {
        biased;
        got = balancer.ready(tried) => Some(got),
        () = std::future::ready(()) => None,
    }
}

fn number(choice: &Choice) -> u8 {
    (1..=u8::MAX)
        .find(|number| endpoint(*number).addr == choice.endpoint().addr)
        .unwrap_or_else(|| panic!("{:?}", choice.endpoint()))
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

async fn pass(time: Duration) {
    tokio::time::advance(time).await;
}
