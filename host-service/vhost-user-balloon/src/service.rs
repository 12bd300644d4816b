//! The process: one thread that waits for everybody and serves one after the other.

#[cfg(feature = "fuzzing")]
pub mod fuzzing;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use memtide_api::device::Role;
use memtide_balloon::{Balloon, Event, LogLimiter, Settings};
use memtide_units::Instant;
use rustix::event::{PollFd, PollFlags, Timespec};

use crate::clock::Clock;
use crate::control::{ClientId, Control, Gone, SizeNews};
use crate::log::EventLog;
use crate::sockets::{BoundSocket, Endpoint, ListenError};
use crate::systemd::Systemd;
use crate::vhost::{Connection, Session, StreamError};

/// Where the VMM comes from.
#[derive(Debug)]
pub enum VmmSource {
    /// It connects to a socket here, again after each time it leaves.
    Listen(Endpoint),
    /// It is connected already; when it leaves, the process ends.
    Connected(UnixStream),
}

/// What one device process is started with.
#[derive(Debug)]
pub struct Options {
    /// Where the VMM comes from.
    pub vmm: VmmSource,
    /// Where the control socket is; `None` for none.
    pub control: Option<Endpoint>,
    /// How the device behaves.
    pub settings: Settings,
}

/// Why a device does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A socket cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The VMM's connection cannot be used.
    #[error("the connection to the VMM cannot be used: {0}")]
    Connection(#[from] io::Error),
}

/// A device and all who talk to it.
#[derive(Debug)]
pub struct Service {
    clock: Clock,
    listener: Option<BoundSocket>,
    pub(crate) balloon: Balloon,
    pub(crate) session: Option<Session>,
    pub(crate) control: Control,
    log: EventLog,
    sizes: SizeNews,
    /// What the next VMM's session may log.
    limiter: LogLimiter,
    systemd: Systemd,
}

/// Who has something to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Stop,
    VmmListener,
    Vmm,
    Transfer,
    Kick(usize),
    ControlListener,
    Client(ClientId),
}

/// Does the process go on?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Go,
    End,
}

impl Service {
    /// Opens the sockets.
    ///
    /// # Errors
    /// [`StartError`] names the socket and what to do.
    pub fn start(options: Options) -> Result<Self, StartError> {
        let clock = Clock::start();
        let now = clock.now();
        let (listener, session) = match options.vmm {
            VmmSource::Listen(endpoint) => (Some(BoundSocket::listen(endpoint)?), None),
            VmmSource::Connected(stream) => {
                (None, Some(Session::new(stream, LogLimiter::new(now))?))
            }
        };
        let control = options.control.map(BoundSocket::listen).transpose()?;
        let balloon = Balloon::new(options.settings, now);
        let (control, log) = (Control::new(control, now), EventLog::new(now));
        let systemd = Systemd::default();
        let limiter = LogLimiter::new(now);
        let sizes = SizeNews::default();
        Ok(Self { clock, listener, balloon, session, control, log, sizes, limiter, systemd })
    }

    /// Serves until `stop` has something to read, or, where the VMM was connected from the start,
    /// until it leaves.
    ///
    /// # Errors
    /// Of `poll(2)`: none in practice.
    pub fn run(mut self, stop: &impl AsFd) -> io::Result<()> {
        self.systemd.ready();
        self.report(self.clock.now());
        while self.turn(stop.as_fd())? == Next::Go {}
        self.systemd.stopping();
        Ok(())
    }

    fn turn(&mut self, stop: BorrowedFd<'_>) -> io::Result<Next> {
        let ready = self.wait(stop)?;
        Ok(self.serve(ready, self.clock.now()))
    }

    /// One round. The last one is a whole one: what the guest has kicked and clients have asked by
    /// then is answered.
    fn serve(&mut self, ready: Vec<Token>, now: Instant) -> Next {
        let mut next = Next::Go;
        for token in ready {
            match token {
                Token::Stop => next = Next::End,
                Token::VmmListener => self.accept_vmm(now),
                Token::Vmm => self.receive(now),
                // Gone on with below, on its deadline as well.
                Token::Transfer => {}
                Token::Kick(index) => {
                    if let Some(session) = &mut self.session {
                        session.kicked(index, now);
                    }
                }
                Token::ControlListener => self.control.accept(now),
                Token::Client(id) => {
                    if let Err(gone) = self.serve_client(id, now) {
                        self.drop_client(id, &gone, now);
                    }
                }
            }
        }
        self.transfer_state(now);
        self.work(now);
        self.tell(now);
        self.report(now);
        let ends = self.session.is_none() && self.listener.is_none();
        if ends { Next::End } else { next }
    }

    /// Tells systemd who is served.
    fn report(&mut self, now: Instant) {
        self.systemd.tell(self.session.as_ref().map(|_| self.balloon.driver()), now);
    }

    /// Waits until somebody is ready or something is due. The order is the order of service: a VMM
    /// that stops its rings comes before the work on them, and one that leaves before the next.
    fn wait(&self, stop: BorrowedFd<'_>) -> io::Result<Vec<Token>> {
        let mut tokens = vec![Token::Stop];
        let mut fds = vec![PollFd::from_borrowed_fd(stop, PollFlags::IN)];
        let mut add = |token, fd, flags| {
            tokens.push(token);
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        };
        if let Some(session) = &self.session {
            if let Some(socket) = session.socket() {
                add(Token::Vmm, socket, PollFlags::IN);
            }
            if let Some((channel, flags)) = session.transfer_channel() {
                add(Token::Transfer, channel, flags);
            }
            session.kicks().for_each(|(index, fd)| add(Token::Kick(index), fd, PollFlags::IN));
        }
        let listeners = [
            (Token::VmmListener, self.listener.as_ref()),
            (Token::ControlListener, self.control.listener()),
        ];
        let now = self.clock.now();
        for (token, listener) in listeners {
            if let Some(listener) = listener.filter(|it| it.rests_until(now).is_none()) {
                add(token, listener.as_fd(), PollFlags::IN);
            }
        }
        for (id, fd, waits) in self.control.clients() {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, waits.input);
            flags.set(PollFlags::OUT, waits.output);
            add(Token::Client(id), fd, flags);
        }
        let timeout = self.time_left().map(timespec);
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let is_ready = |(token, fd): &(Token, &PollFd<'_>)| {
            let asked = matches!(token, Token::Client(id) if self.control.has_calls(*id));
            asked || !fd.revents().is_empty()
        };
        let ready = tokens.into_iter().zip(&fds).filter(is_ready);
        Ok(ready.map(|(token, _)| token).collect())
    }

    /// Time to the next thing that is due by itself.
    fn time_left(&self) -> Option<Duration> {
        let now = self.clock.now();
        let of_session = self.session.as_ref().and_then(|session| {
            let stats = session.statistics_due(&self.balloon, now);
            let transfer = session.transfer_due();
            let due = [session.work_due(now), session.notice_due(now), stats, transfer];
            due.into_iter().flatten().min()
        });
        let calls = self.control.has_any_calls().then_some(now);
        let listeners = [self.listener.as_ref(), self.control.listener()];
        let rest = listeners.into_iter().flatten().filter_map(|it| it.rests_until(now)).min();
        let due = [of_session, self.systemd.due(), calls, rest, self.sizes.due(now)];
        Some(due.into_iter().flatten().min()?.since(now))
    }

    fn accept_vmm(&mut self, now: Instant) {
        let accepted = self.listener.as_mut().map_or(Ok(None), |listener| listener.accept(now));
        let session = |stream| Session::new(stream, self.limiter);
        match accepted.and_then(|stream| stream.map(session).transpose()) {
            Ok(Some(_)) if self.session.is_some() => {
                self.log.warn(now, || "a second VMM is turned away: one is connected".into());
            }
            Ok(Some(session)) => {
                self.log.coming(now, || "a VMM has connected".into());
                self.session = Some(session);
            }
            Ok(None) => {}
            Err(error) => {
                self.log.warn(now, || format!("a VMM could not be accepted: {error}"));
            }
        }
    }

    fn receive(&mut self, now: Instant) {
        let Some(session) = &mut self.session else { return };
        match session.receive(&mut self.balloon, now) {
            Ok(Connection::Open) => {}
            Ok(Connection::Closed) => self.end_session(None, now),
            Err(error) => self.end_session(Some(&error), now),
        }
    }

    fn transfer_state(&mut self, now: Instant) {
        let Some(session) = &mut self.session else { return };
        if let Err(error) = session.transfer_state(&mut self.balloon, now) {
            self.end_session(Some(&error), now);
        }
    }

    /// Forgets the VMM: its memory is unmapped, its descriptors closed.
    fn end_session(&mut self, error: Option<&StreamError>, now: Instant) {
        match error {
            None => self.log.coming(now, || "the VMM has left".into()),
            Some(error) => {
                self.log.warn(now, || format!("the connection to the VMM is given up: {error}"));
            }
        }
        if let Some(session) = self.session.take() {
            self.limiter = session.limiter();
        }
        self.balloon.vmm_left();
    }

    /// Works on the rings and on what is due. Notices come first: a VMM that has read half of one
    /// waits for the rest.
    fn work(&mut self, now: Instant) {
        let Some(session) = &mut self.session else { return };
        session.send_notice(&mut self.balloon, now);
        session.work(&mut self.balloon, now);
        session.ask_statistics(&mut self.balloon, now);
        // Said while no driver runs, it is for the one that starts: a migrated one does not read
        // the configuration by itself.
        if session.has_driver() && self.balloon.take_look_again() {
            session.look_again();
        }
    }

    /// Tells the log and the clients what has happened.
    fn tell(&mut self, now: Instant) {
        for event in self.balloon.take_events() {
            self.log.write(&event, now);
            if let Some(event) = self.sizes.keep(event) {
                self.tell_clients(event, now);
            }
        }
        if let Some(event) = self.sizes.take(now) {
            self.tell_clients(event, now);
        }
    }

    fn tell_clients(&mut self, event: Event, now: Instant) {
        let Some(event) = crate::control::event(event) else { return };
        for (id, gone) in self.control.tell(event) {
            self.drop_client(id, &gone, now);
        }
    }

    fn drop_client(&mut self, id: ClientId, gone: &Gone, now: Instant) {
        if self.control.remove(id, gone, now) == Some(Role::Controller) {
            self.log.coming(now, || "the controller has left".into());
            self.balloon.controller_left(now);
        }
    }
}

fn timespec(wait: Duration) -> Timespec {
    Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) }
}
