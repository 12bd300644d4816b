//! The process: starts every part, runs until it is told to stop.

use std::io;
use std::time::Duration;

use memtide_api::device::Request;
use memtide_policy::host::VmId;
use memtide_units::Instant;
use tokio::net::UnixListener;
use tokio::runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time;

use crate::config::{Config, Device, VmConfig};
use crate::device::{DeviceLog, Launcher, Link, News, NoDeviceBinary, Process};
use crate::http::{self, Question};
use crate::keeper::{Keeper, Outcome, Send, VmOrder};
use crate::meminfo::{self, MeminfoError};
use crate::socket::{ApiSocket, SocketError};
use crate::storing::Storing;
use crate::supervisor::Supervisor;
use crate::vmm::{Order, VmmLink, VmmNews};

/// How often the host's memory is read and changes are kept.
const TICK: Duration = Duration::from_secs(1);
/// What has to be in the file at once is tried again so soon while an earlier write goes on.
const SAVE_AGAIN: Duration = Duration::from_millis(10);
/// News and questions that may wait for the keeper before those who bring more wait themselves.
const QUEUE: usize = 64;

/// Why memtided does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration is not good.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// The API cannot listen.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The host's memory is not known.
    #[error(transparent)]
    Meminfo(#[from] MeminfoError),
    /// A device is to be started and there is no program for it.
    #[error(transparent)]
    Device(#[from] NoDeviceBinary),
    /// The system refused something that every process needs.
    #[error("the system refused an event loop or a signal handler: {0}")]
    System(#[from] io::Error),
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// [`RunError`] where it cannot start.
pub fn run(config: Config) -> Result<(), RunError> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(async {
        let (socket, listener) = ApiSocket::listen(&config.socket)?;
        let service = Service::new(&config)?;
        let ended = service.run(listener).await;
        drop(socket);
        ended
    });
    runtime.shutdown_background();
    ended
}

/// Everything that runs.
struct Service {
    keeper: Keeper,
    start: time::Instant,
    config: Config,
    news: mpsc::Receiver<(VmId, News)>,
    requests: Vec<mpsc::UnboundedSender<Request>>,
    vmm_news: mpsc::Receiver<(VmId, VmmNews)>,
    /// By VM; none where it has no monitor.
    orders: Vec<Option<mpsc::UnboundedSender<Order>>>,
    /// Something has to be in the file at once, and is not.
    unsaved: bool,
    storing: Storing,
    supervisor: Supervisor,
    stop: [Signal; 2],
}

impl Service {
    fn new(config: &Config) -> Result<Self, RunError> {
        let storing = Storing::open(config);
        let memory = meminfo::read(&config.meminfo)?;
        let launcher = launcher(config)?;
        let (news, heard) = mpsc::channel(QUEUE);
        let mut requests = Vec::with_capacity(config.vms.len());
        for (id, vm) in (0..).map(VmId).zip(&config.vms) {
            let (send, receive) = mpsc::unbounded_channel();
            let process = match (&vm.device, &launcher) {
                (Device::Start { vhost_socket }, Some(launcher)) => {
                    Some(Process::new(launcher.clone(), vhost_socket.clone()))
                }
                _ => None,
            };
            let link = Link::new(id, vm.clone(), process, news.clone(), receive);
            tokio::spawn(link.run());
            requests.push(send);
        }
        let (vmm_news, orders) = vmm_links(config);
        if config.vms.is_empty() {
            tracing::warn!("no VM is configured: add [[vm]] to the configuration or give --vm");
        }
        Ok(Self {
            keeper: Keeper::new(config, &storing.kept, memory),
            start: time::Instant::now(),
            config: config.clone(),
            news: heard,
            requests,
            vmm_news,
            orders,
            unsaved: false,
            storing,
            supervisor: Supervisor::default(),
            stop: [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?],
        })
    }

    async fn run(mut self, listener: UnixListener) -> Result<(), RunError> {
        let (ask, mut questions) = mpsc::channel(QUEUE);
        let api = axum::serve(listener, http::router(ask)).into_future();
        tokio::spawn(api);
        self.supervisor.ready();
        tracing::info!("listening on {}", self.config.socket.display());
        let period = Supervisor::watchdog_interval().map_or(TICK, |limit| limit.min(TICK));
        let mut tick = time::interval(period);
        let mut deadline = time::Instant::now();
        loop {
            let [terminate, interrupt] = &mut self.stop;
            let wait = tokio::select! {
                Some((vm, news)) = self.news.recv() => self.hear(vm, news),
                Some((vm, news)) = self.vmm_news.recv() => self.hear_vmm(vm, news),
                Some(question) = questions.recv() => self.answer(question),
                _ = tick.tick() => self.tick(),
                () = time::sleep_until(deadline) => self.step(),
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            };
            deadline = time::Instant::now() + wait;
        }
        self.supervisor.stopping();
        self.storing.save_last(&self.keeper.to_keep()).await;
        tracing::info!("stopped; devices and guests go on");
        Ok(())
    }

    fn now(&self) -> Instant {
        Instant::default() + self.start.elapsed()
    }

    fn hear(&mut self, vm: VmId, news: News) -> Duration {
        self.keeper.hear(self.now(), vm, news);
        self.step()
    }

    fn hear_vmm(&mut self, vm: VmId, news: VmmNews) -> Duration {
        self.keeper.hear_vmm(self.now(), vm, news);
        self.step()
    }

    fn tick(&mut self) -> Duration {
        match meminfo::read(&self.config.meminfo) {
            Ok(memory) => self.keeper.host_memory(memory),
            Err(error) => tracing::warn!("{error}; the last reading is used"),
        }
        let wait = self.step();
        self.storing.save_soon(self.keeper.to_keep());
        self.supervisor.alive(self.keeper.summary());
        wait
    }

    /// Lets the policy decide and sends what follows; returns when to do so again at the latest.
    fn step(&mut self) -> Duration {
        let Outcome { sends, wait, orders, keep } = self.keeper.step(self.now());
        // A squeeze that is forgotten would look like an operator's wish at the next start.
        let is_aim = |send: &Send| matches!(send.request, Request::SetTarget { .. });
        self.unsaved |= keep || sends.iter().any(is_aim);
        if self.unsaved {
            self.unsaved = !self.storing.save_soon(self.keeper.to_keep());
        }
        for send in sends {
            // A link ends with the process only: then nobody needs the request.
            let _ = self.requests[send.vm.0 as usize].send(send.request);
        }
        for VmOrder { vm, order } in orders {
            if let Some(link) = &self.orders[vm.0 as usize] {
                let _ = link.send(order);
            }
        }
        let again = self.unsaved.then_some(SAVE_AGAIN);
        [wait, again].into_iter().flatten().min().unwrap_or(TICK).max(Duration::from_millis(1))
    }

    /// A client that has gone meanwhile needs no answer.
    fn answer(&mut self, question: Question) -> Duration {
        match question {
            Question::Host(answer) => {
                let wait = self.step();
                let _ = answer.send(self.keeper.host_status());
                wait
            }
            Question::ChangeHost(change, answer) => {
                let changed = self.keeper.change_host(&change);
                let wait = self.after_change();
                let _ = answer.send(changed.map(|()| self.keeper.host_status()));
                wait
            }
            Question::Vm(name, answer) => {
                let wait = self.step();
                let found = self.keeper.find(&name);
                let _ = answer.send(found.map(|id| self.keeper.vm_status(id)));
                wait
            }
            Question::Access(name, answer) => {
                let now = self.now();
                let found = self.keeper.find(&name);
                let _ = answer.send(found.and_then(|id| self.keeper.vm_access(now, id)));
                self.step()
            }
            Question::ChangeVm(name, change, answer) => {
                let found = self.keeper.find(&name);
                let changed = found.and_then(|id| self.keeper.change_vm(id, &change).map(|()| id));
                let wait = self.after_change();
                let _ = answer.send(changed.map(|id| self.keeper.vm_status(id)));
                wait
            }
        }
    }

    fn after_change(&mut self) -> Duration {
        let wait = self.step();
        self.storing.save_soon(self.keeper.to_keep());
        wait
    }
}

type VmmLinks = (mpsc::Receiver<(VmId, VmmNews)>, Vec<Option<mpsc::UnboundedSender<Order>>>);

/// Starts a link for each VM with a monitor.
fn vmm_links(config: &Config) -> VmmLinks {
    let (news, heard) = mpsc::channel(QUEUE);
    let link = |(id, vm): (VmId, &VmConfig)| {
        let (send, orders) = mpsc::unbounded_channel();
        tokio::spawn(VmmLink::new(id, vm.qmp.clone()?, news.clone(), orders).run());
        Some(send)
    };
    (heard, (0..).map(VmId).zip(&config.vms).map(link).collect())
}

fn launcher(config: &Config) -> Result<Option<Launcher>, NoDeviceBinary> {
    if !config.vms.iter().any(|vm| matches!(vm.device, Device::Start { .. })) {
        return Ok(None);
    }
    let to_journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let log =
        if to_journal { DeviceLog::Inherit } else { DeviceLog::Dir(config.state_dir.clone()) };
    Launcher::find(config.device_binary.as_deref(), log).map(Some)
}
