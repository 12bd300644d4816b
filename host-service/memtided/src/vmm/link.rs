//! One task per VM with a monitor: looks what is plugged in, and plugs in.
//!
//! ```text
//! keeper --Look, Plug--> [one conversation at a time] --what is plugged in, how it went--> keeper
//!        each 10 s: Look
//! ```

use std::path::PathBuf;
use std::time::Duration;

use memtide_policy::host::VmId;
use serde_json::json;
use tokio::sync::mpsc::{Sender, UnboundedReceiver};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::dimms::{self, Dimm};
use super::qmp::{Conversation, PATIENCE, Problem, QmpError};
use super::{Order, PlugOutcome, VmmNews};

/// How often a VM is looked at unasked: somebody else may plug DIMMs in, or unplug them.
const LOOK: Duration = Duration::from_secs(10);
/// Between two orders to plug in: a guest may eject and ask again as often as it likes.
const APART: Duration = Duration::from_millis(200);

/// The keeper has ended: so must the link.
struct KeeperEnded;

/// What was seen in one conversation.
#[derive(Default)]
struct Looks {
    before: Option<Vec<Dimm>>,
    after: Option<Vec<Dimm>>,
}

/// The link to the monitor of one VM.
pub(crate) struct VmmLink {
    id: VmId,
    socket: PathBuf,
    news: Sender<(VmId, VmmNews)>,
    /// Not bounded by itself: the keeper has one look and one plug for each DIMM under way at most.
    orders: UnboundedReceiver<Order>,
    not_before: Instant,
}

impl VmmLink {
    /// A link that has done nothing yet.
    pub(crate) fn new(
        id: VmId,
        socket: PathBuf,
        news: Sender<(VmId, VmmNews)>,
        orders: UnboundedReceiver<Order>,
    ) -> Self {
        Self { id, socket, news, orders, not_before: Instant::now() }
    }

    /// Runs for as long as there is a keeper.
    pub(crate) async fn run(mut self) {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let order = tokio::select! {
                order = self.orders.recv() => order,
                _ = looks.tick() => Some(Order::Look),
            };
            let told = match order {
                Some(Order::Look) => self.look().await,
                Some(Order::Plug(dimm)) => self.plug(dimm).await,
                None => return,
            };
            if told.is_err() {
                return;
            }
        }
    }

    async fn look(&self) -> Result<(), KeeperEnded> {
        let looked = async { query(&mut self.open().await?).await };
        match looked.await {
            Ok(dimms) => self.tell(VmmNews::Dimms(dimms)).await,
            Err(error) => self.tell(VmmNews::Unusable(error.to_string())).await,
        }
    }

    /// What was there before is told before how it went, and what is there after it after that.
    async fn plug(&mut self, dimm: Dimm) -> Result<(), KeeperEnded> {
        sleep_until(self.not_before).await;
        let mut looks = Looks::default();
        let went = self.plug_if_missing(&dimm, &mut looks).await;
        self.not_before = Instant::now() + APART;
        let outcome = went.unwrap_or_else(|error| PlugOutcome::Failed(error.to_string()));
        let outcome = VmmNews::Plug { memdev: dimm.memdev, outcome };
        let (before, after) = (looks.before.map(VmmNews::Dimms), looks.after.map(VmmNews::Dimms));
        for news in [before, Some(outcome), after].into_iter().flatten() {
            self.tell(news).await?;
        }
        Ok(())
    }

    async fn plug_if_missing(
        &self,
        dimm: &Dimm,
        looks: &mut Looks,
    ) -> Result<PlugOutcome, QmpError> {
        let mut conversation = self.open().await?;
        let there = query(&mut conversation).await?;
        let is_there = there.iter().any(|other| other.memdev == dimm.memdev);
        looks.before = Some(there);
        if is_there {
            return Ok(PlugOutcome::WasThere);
        }
        if let Err(error) = conversation.execute("device_add", dimm.device_add()).await {
            let is_gone = is_gone(&mut conversation, &dimm.memdev).await;
            let outcome = if is_gone { PlugOutcome::NoBackend } else { PlugOutcome::Failed };
            return Ok(outcome(error.to_string()));
        }
        // That it was plugged in is so even if this fails; then the next look tells the rest.
        looks.after = query(&mut conversation).await.ok();
        Ok(PlugOutcome::Done)
    }

    async fn open(&self) -> Result<Conversation<'_>, QmpError> {
        Conversation::open(&self.socket, PATIENCE).await
    }

    async fn tell(&self, news: VmmNews) -> Result<(), KeeperEnded> {
        self.news.send((self.id, news)).await.map_err(|_| KeeperEnded)
    }
}

async fn query(conversation: &mut Conversation<'_>) -> Result<Vec<Dimm>, QmpError> {
    const COMMAND: &str = "query-memory-devices";
    let answer = conversation.execute(COMMAND, json!({})).await?;
    dimms::parse(&answer).map_err(|why| conversation.error(COMMAND, Problem::Answer(why)))
}

/// Is that object there no longer? QEMU's refusal does not tell it from others by its class.
async fn is_gone(conversation: &mut Conversation<'_>, object: &str) -> bool {
    let objects = conversation.execute("qom-list", json!({"path": "/objects"})).await;
    let names = objects.ok().and_then(|objects| {
        let names = objects.as_array()?.iter().map(|entry| entry["name"].as_str());
        names.map(|name| name.map(str::to_owned)).collect::<Option<Vec<String>>>()
    });
    names.is_some_and(|names| names.iter().all(|name| name != object))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::fake_qmp::FakeQmp;
    use memtide_units::{ByteSize, Gpa, GpaRange};
    use tokio::sync::mpsc::{self, Receiver, UnboundedSender};

    fn dimm(n: u64) -> Dimm {
        let size = ByteSize::from_mib(512);
        let range = GpaRange::new(Gpa((4 << 30) + n * size.bytes()), size).unwrap();
        Dimm {
            id: Some(format!("dimm{n}")),
            memdev: format!("mem{n}"),
            range,
            slot: i64::try_from(n).unwrap(),
            node: 0,
        }
    }

    struct Linked {
        folder: tempfile::TempDir,
        qmp: FakeQmp,
        orders: UnboundedSender<Order>,
        news: Receiver<(VmId, VmmNews)>,
    }

    impl Linked {
        /// A VM with two DIMMs, after the first look.
        async fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("qmp.sock");
            let qmp = FakeQmp::start(&path);
            for n in [0, 1] {
                qmp.plug(n, dimm(n).range);
            }
            let (send, news) = mpsc::channel(8);
            let (orders, receive) = mpsc::unbounded_channel();
            tokio::spawn(VmmLink::new(VmId(0), path, send, receive).run());
            let mut linked = Self { folder, qmp, orders, news };
            assert_eq!(linked.news().await, VmmNews::Dimms(vec![dimm(0), dimm(1)]));
            linked
        }

        async fn news(&mut self) -> VmmNews {
            let news = tokio::time::timeout(Duration::from_secs(20), self.news.recv()).await;
            news.expect("news in time").expect("a link that lives").1
        }

        async fn plug(&mut self, n: u64) -> PlugOutcome {
            self.orders.send(Order::Plug(dimm(n))).unwrap();
            let mut news = self.news().await;
            if let VmmNews::Dimms(_) = news {
                news = self.news().await;
            }
            match news {
                VmmNews::Plug { memdev, outcome } if memdev == dimm(n).memdev => outcome,
                other => panic!("{other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn what_is_missing_is_plugged_in_and_what_is_there_is_not() {
        let mut linked = Linked::new().await;
        linked.qmp.eject("mem1");
        let start = Instant::now();
        assert_eq!(linked.plug(1).await, PlugOutcome::Done);
        assert_eq!(linked.news().await, VmmNews::Dimms(vec![dimm(0), dimm(1)]));
        assert_eq!(linked.qmp.device_adds(), [dimm(1).device_add()]);
        assert_eq!(linked.plug(1).await, PlugOutcome::WasThere);
        assert!(start.elapsed() >= APART, "one after the other");
        assert_eq!(linked.qmp.device_adds().len(), 1);
    }

    #[tokio::test]
    async fn a_backend_that_is_gone_is_told_from_other_failures() {
        let mut linked = Linked::new().await;
        linked.qmp.eject("mem1");
        linked.qmp.refuse_plugs("no slot is free");
        let outcome = linked.plug(1).await;
        let PlugOutcome::Failed(why) = outcome else { panic!("{outcome:?}") };
        assert!(why.contains("no slot is free") && why.contains("device_add"), "{why}");
        linked.qmp.remove_backend("mem1");
        let outcome = linked.plug(1).await;
        assert!(matches!(outcome, PlugOutcome::NoBackend(why) if why.contains("mem1")));
    }

    #[tokio::test]
    async fn a_monitor_that_is_gone_is_told_and_found_again() {
        let mut linked = Linked::new().await;
        linked.qmp.stop();
        linked.orders.send(Order::Look).unwrap();
        let news = linked.news().await;
        assert!(matches!(&news, VmmNews::Unusable(why) if why.contains("qmp.sock")), "{news:?}");
        assert!(matches!(linked.plug(0).await, PlugOutcome::Failed(_)));
        linked.qmp = FakeQmp::start(&linked.folder.path().join("qmp.sock"));
        linked.orders.send(Order::Look).unwrap();
        assert_eq!(linked.news().await, VmmNews::Dimms(Vec::new()));
    }
}
