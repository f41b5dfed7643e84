-- Settings: the market's dials. Operators change them with set_setting() or in Studio; every
-- function reads them at each call, all at once, from a copy in one row.

create table public.settings (
  key         text primary key check (key ~ '^[a-z][a-z0-9_]{1,62}$'),
  value       jsonb not null,
  description text not null,
  updated_at  timestamptz not null default now()
);
alter table public.settings enable row level security;

insert into public.settings (key, value, description) values
  ('name', '"Infernet"', 'What this control plane calls itself'),
  ('fee_rate', '0.05', 'Operator''s share of what a job costs, 0 to 1'),
  ('node_approval', '"manual"', 'manual: an operator approves each node; auto: enrolled nodes work at once'),
  ('open_models', 'true', 'Nodes may offer models that no operator has listed'),
  ('welcome_credit', '0', 'USD given to each new user from the goodwill account'),
  ('heartbeat_secs', '5', 'Seconds between two heartbeats of a node'),
  ('lease_secs', '15', 'Seconds without a heartbeat after which a node is lost; at least three heartbeats'),
  ('offer_secs', '3', 'Seconds in which an offered attempt must start'),
  ('cancel_secs', '10', 'Seconds in which a node must answer a cancellation'),
  ('forgotten_secs', '10', 'Seconds after which a running attempt that its node does not name is lost'),
  ('max_attempts', '3', 'Attempts a job gets'),
  ('retry_secs', '2', 'Seconds before the same node may try a failed job again, doubled at each attempt'),
  ('retry_secs_max', '60', 'Longest wait before the same node may try a failed job again, seconds'),
  ('delay_secs_max', '604800', 'Longest delay after which a job may ask to start, seconds'),
  ('queued_limit', '20000', 'Jobs of one consumer that may wait at a time'),
  ('running_limit', '1000', 'Jobs of one consumer that may run at a time'),
  ('batch_items', '10000', 'Most items of a batch'),
  ('candidates_max', '64', 'Offers that are looked at for one job; of more, a random part'),
  ('line_window', '64', 'Waiting jobs that are looked at for one free slot'),
  ('warm_secs', '300', 'Seconds after its last job in which an offer counts as warm'),
  ('speed_reference', '50', 'Output tokens a second of an ordinary offer, against which speed is scored'),
  ('container_secs', '600', 'Seconds of a container job that names none'),
  ('container_secs_max', '86400', 'Most seconds a container job may ask for'),
  ('price_second_max', '1', 'Highest price of a container offer, USD per second'),
  ('deadline_secs', '600', 'Deadline of a job that names none'),
  ('deadline_secs_max', '86400', 'Longest deadline a job may ask for'),
  ('prompt_bytes', '262144', 'Largest input of a job, bytes of its JSON'),
  ('output_bytes', '1048576', 'Largest output of a job, bytes'),
  ('output_tokens', '512', 'Output tokens of a job that names none'),
  ('output_tokens_max', '8192', 'Most output tokens a job may ask for'),
  ('input_tokens_base', '64', 'Tokens that a model''s template may add to any input'),
  ('input_tokens_message', '16', 'Tokens that a model''s template may add to each message'),
  ('tokens_per_second_max', '2000', 'Output faster than this is not paid for'),
  ('price_max', '10000', 'Highest price of an offer, USD per million tokens'),
  ('price_input_min', '0', 'Lowest price of an offer, USD per million input tokens; offers below it are switched off'),
  ('price_output_min', '0', 'Lowest price of an offer, USD per million output tokens; offers below it are switched off'),
  ('price_second_min', '0', 'Lowest price of a container offer, USD per second; offers below it are switched off'),
  ('price_input_default', '0.10', 'Price of an offer that names none, USD per million input tokens'),
  ('price_output_default', '0.40', 'Price of an offer that names none, USD per million output tokens'),
  ('cap_factor', '2', 'Cap of a job that names none: this many times the lowest quote'),
  ('input_keys', '["messages","prompt","temperature","top_p","top_k","min_p","seed","stop","frequency_penalty","presence_penalty","repeat_penalty","response_format","logit_bias","tools","tool_choice","parallel_tool_calls","share_prefix_cache"]',
   'Keys of an OpenAI request that are handed to the engine'),
  ('weights', '{"price":1,"speed":0.3,"outcomes":0.3,"warm":0.2,"load":0.3,"realtime":0.05,"prefer":2,"retry":10}', 'Weights of the score that orders candidates'),
  ('tick_jobs', '200', 'Jobs that one tick looks at in each step'),
  ('tick_models', '50', 'Models whose lines one tick looks at'),
  ('realtime_messages_per_second', '100', 'Messages a second that this Realtime delivers to the whole project'),
  ('outage_secs', '10', 'A gap between two ticks that counts as an outage of our own'),
  ('login_limit', '30', 'Logins a minute of one key'),
  ('login_address_limit', '600', 'Logins a minute from one address'),
  ('enrolment_secs_max', '86400', 'Longest life of an enrolment code'),
  ('fault_limit', '3', 'Faults of its engine in a row, without a success between them, that pause a node; 0: none does'),
  ('fault_window_secs', '600', 'Seconds after which a fault of an engine is forgotten'),
  ('pause_secs', '60', 'Seconds of a node''s first pause, doubled at each that follows without a success between them'),
  ('pause_secs_max', '3600', 'Longest pause of a node, seconds'),
  ('command_secs', '3600', 'Seconds in which a node must finish a command that names no other time'),
  ('command_secs_max', '604800', 'Longest time that a command may stand, seconds'),
  ('commands_pending_max', '20', 'Commands that may wait for one node'),
  ('content_days', '30', 'Days after its end for which a job''s prompt, answer, title and error messages are kept'),
  ('record_days', '400', 'Days after its end for which a job''s record is kept; never shorter than its contents. The ledger stays'),
  ('late_result_days', '90', 'Days for which results that came too late are kept as evidence'),
  ('retention_jobs', '200', 'Jobs whose contents, and whose records, one tick deletes at most'),
  ('overview_kept_offers', '20000', 'Offers from which on the overview is counted every 15 seconds instead of for each visitor'),
  ('maintenance_days_max', '90', 'How far ahead a maintenance window may end, days');

-- All settings as one object, kept by a trigger: hot calls read this row once. It is stored in line and
-- uncompressed, so that reading it is reading one page.
create table infernet.settings_row (
  only_row boolean primary key default true check (only_row),
  value    jsonb not null check (pg_column_size(value) <= 7168)
);
alter table infernet.settings_row alter column value set storage plain;
alter table infernet.settings_row enable row level security;
insert into infernet.settings_row (value) select jsonb_object_agg(s.key, s.value) from public.settings s;

create function infernet.settings_now() returns jsonb
language plpgsql stable security definer set search_path = '' as $$
begin
  return (select r.value from infernet.settings_row r);
end $$;

-- Changes the copy by one setting. Two who change different settings at once wait for each other here,
-- and each adds to what the other left.
create function infernet.copy_setting() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  if tg_op <> 'INSERT' then
    update infernet.settings_row set value = value - old.key;
  end if;
  if tg_op <> 'DELETE' then
    update infernet.settings_row set value = value || jsonb_build_object(new.key, new.value);
  end if;
  return null;
end $$;

create trigger copy_setting after insert or update or delete on public.settings
  for each row execute function infernet.copy_setting();

-- A setting that holds seconds, out of all settings.
create function infernet.secs(p_settings jsonb, p_key text) returns interval
language sql immutable parallel safe as $$
  select make_interval(secs => (p_settings ->> p_key)::double precision)
$$;

-- One setting; a missing one is a fault of the installation, not of the caller.
create function infernet.setting(p_key text) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  v_value jsonb := (select r.value -> p_key from infernet.settings_row r);
begin
  if v_value is null then
    raise exception 'setting % is missing', p_key using hint = 'Run the migrations again, or insert it into public.settings.';
  end if;
  return v_value;
end $$;

create function infernet.setting_number(p_key text) returns numeric
language plpgsql stable set search_path = '' as $$
begin
  return infernet.setting(p_key)::numeric;
end $$;

create function infernet.setting_int(p_key text) returns int
language plpgsql stable set search_path = '' as $$
begin
  return infernet.setting(p_key)::int;
end $$;

create function infernet.setting_text(p_key text) returns text
language sql stable set search_path = '' as $$
  select infernet.setting(p_key) #>> '{}'
$$;

-- A setting that holds seconds.
create function infernet.setting_secs(p_key text) returns interval
language plpgsql stable set search_path = '' as $$
begin
  return make_interval(secs => infernet.setting(p_key)::double precision);
end $$;

-- Refuses values that would break the market; Studio and the service role go through the same check,
-- hence security definer: they may not call what it calls.
create function infernet.check_setting() returns trigger
language plpgsql security definer set search_path = '' as $$
declare
  v_text  text := new.value #>> '{}';
  v_wrong text;
begin
  if new.key in ('name', 'node_approval') then
    if jsonb_typeof(new.value) <> 'string' or length(v_text) not between 1 and 80
       or (new.key = 'node_approval' and v_text not in ('manual', 'auto')) then
      perform infernet.refuse(422, 'bad_setting', format('Setting %s cannot be %s.', new.key, new.value));
    end if;
  elsif new.key in ('input_keys', 'weights', 'open_models') then
    if jsonb_typeof(new.value) <> (case new.key when 'input_keys' then 'array' when 'weights' then 'object' else 'boolean' end) then
      perform infernet.refuse(422, 'bad_setting', format('Setting %s cannot be %s.', new.key, new.value));
    elsif new.key = 'input_keys' and jsonb_path_exists(new.value, '$[*] ? (@.type() != "string")') then
      perform infernet.refuse(422, 'bad_setting', 'The setting input_keys is an array of strings.');
    elsif new.key = 'weights' then
      select min(w.key) into v_wrong from jsonb_each(new.value) w
      where w.key not in ('price', 'speed', 'outcomes', 'warm', 'load', 'realtime', 'prefer', 'retry')
         or jsonb_typeof(w.value) <> 'number' or (w.value #>> '{}')::numeric not between 0 and 1000000;
      if v_wrong is not null then
        perform infernet.refuse(422, 'bad_setting', format('The weight %s cannot be %s.', left(v_wrong, 40), left(new.value ->> v_wrong, 40)),
          'Weights are numbers of at least 0: price, speed, outcomes, warm, load, realtime, prefer and retry.');
      end if;
    end if;
  elsif jsonb_typeof(new.value) <> 'number' or v_text::numeric not between 0 and 2147483647 then
    perform infernet.refuse(422, 'bad_setting', format('Setting %s must be a number of at least 0, and below 2147483648.', new.key));
  elsif v_text::numeric = 0 and new.key in ('heartbeat_secs', 'lease_secs', 'offer_secs', 'speed_reference')
     or v_text::numeric < 1 and new.key in ('max_attempts', 'candidates_max', 'line_window', 'tick_jobs', 'tick_models',
                                            'output_tokens_max', 'deadline_secs_max') then
    perform infernet.refuse(422, 'bad_setting', format('Setting %s cannot be %s: nothing would work any more.', new.key, v_text));
  elsif new.key like '%\_days' and v_text::numeric > 36500 then
    perform infernet.refuse(422, 'bad_setting', format('Setting %s has at most 36500 days, which are a hundred years.', new.key));
  elsif new.key = 'fee_rate' and v_text::numeric > 1 then
    perform infernet.refuse(422, 'bad_setting', 'The fee rate must be between 0 and 1.');
  end if;
  new.updated_at := infernet.clock();
  return new;
end $$;

create trigger check_setting before insert or update on public.settings
  for each row execute function infernet.check_setting();
