-- Installed by still_market.rs into the database that its copies are made from: acting as somebody, and
-- making people and nodes.

create schema tests;

create function tests.act(p_subject uuid, p_sql text) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_answer jsonb;
  v_state  text;
  v_detail text;
  v_text   text;
begin
  perform set_config('request.jwt.claims', jsonb_build_object('sub', p_subject, 'role', 'authenticated')::text, true);
  perform set_config('role', 'authenticated', true);
  begin
    execute 'select to_jsonb(' || p_sql || ')' into v_answer;
    v_answer := jsonb_build_object('ok', v_answer);
  exception when others then
    get stacked diagnostics v_state = returned_sqlstate, v_detail = pg_exception_detail, v_text = message_text;
    if v_state not like 'PT%' then
      raise;
    end if;
    v_answer := jsonb_build_object('refused', v_detail, 'message', v_text);
  end;
  perform set_config('role', 'none', true);
  return v_answer;
end $$;

-- Ids that are the same in each run, since rows are also taken in their order.
create sequence tests.ids;
create function tests.next_id() returns uuid
language sql set search_path = '' as $$
  select lpad(nextval('tests.ids')::text, 32, '0')::uuid
$$;
alter table public.offers alter column id set default tests.next_id();
alter table public.job_attempts alter column id set default tests.next_id();

create function tests.person(p_name text, p_key text, p_credit numeric) returns uuid
language plpgsql as $$
declare
  v_user uuid := infernet.ensure_user(p_key, p_name);
begin
  perform infernet.post_transfer(gen_random_uuid(), 'grant',
    array[infernet.account('goodwill', null), infernet.account('available', v_user)],
    array[-p_credit, p_credit]);
  return v_user;
end $$;

create function tests.node(p_name text, p_key text, p_owner uuid) returns uuid
language plpgsql as $$
declare
  v_key infernet.keys;
begin
  insert into infernet.keys values (p_key, tests.next_id(), 'provider') returning * into v_key;
  perform infernet.make_node(v_key, p_owner, p_name);
  update public.providers set approval = 'approved' where id = v_key.subject;
  return v_key.subject;
end $$;
