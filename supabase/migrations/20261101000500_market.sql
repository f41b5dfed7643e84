-- The market: models, and what each provider asks for serving them.

create table public.models (
  id             uuid primary key default gen_random_uuid(),
  name           text not null unique check (name ~ '^[A-Za-z0-9][A-Za-z0-9._:/-]{0,99}$'),
  family         text check (length(family) <= 80),
  context_length int check (context_length > 0),
  visibility     text not null default 'public' check (visibility in ('public', 'hidden')),
  created_at     timestamptz not null default now()
);
alter table public.models enable row level security;

-- An offer: this provider serves this model at these prices (USD per million tokens), so many at a
-- time. listed is kept true while its provider is approved and public.
create table public.offers (
  id             uuid primary key default gen_random_uuid(),
  provider_id    uuid not null references public.providers (id),
  model_id       uuid not null references public.models (id),
  price_input    numeric(38,12) not null check (price_input >= 0),
  price_output   numeric(38,12) not null check (price_output >= 0),
  slots          int not null check (slots between 1 and 1024),
  model_digest   text check (model_digest ~ '^[0-9a-f]{64}$'),
  context_length int check (context_length > 0),
  enabled        boolean not null default true,
  approved       boolean not null default false,
  listed         boolean not null default false,
  created_at     timestamptz not null default now(),
  unique (provider_id, model_id)
);
alter table public.offers enable row level security;
create index offers_market on public.offers (model_id) where enabled and approved;

-- How many slots of an offer are taken. A narrow row of its own, so that taking one is a HOT update;
-- its lock is the one guard against giving a slot twice.
create table infernet.offer_load (
  offer_id uuid primary key references public.offers (id),
  slots    int not null check (slots >= 1),
  busy     int not null default 0 check (busy >= 0)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 100);
alter table infernet.offer_load enable row level security;

-- Takes one slot, or says false. Waits for a busy row only when the caller holds no other one:
-- two that each hold one slot and want the other's would wait for ever.
create function infernet.take_slot(p_offer uuid, p_wait boolean) returns boolean
language plpgsql security definer set search_path = '' as $$
begin
  if not p_wait then
    perform from infernet.offer_load l where l.offer_id = p_offer for update skip locked;
    if not found then
      return false;
    end if;
  end if;
  update infernet.offer_load set busy = busy + 1 where offer_id = p_offer and busy < slots;
  return found;
end $$;

create function infernet.release_slot(p_offer uuid) returns void
language sql security definer set search_path = '' as $$
  update infernet.offer_load set busy = busy - 1 where offer_id = p_offer
$$;

-- Writes one offer of a provider; each is one element of register_node's p_offers.
create function infernet.put_offer(p_node public.providers, p_offer jsonb) returns uuid
language plpgsql security definer set search_path = '' as $$
declare
  v_model  uuid;
  v_offer  uuid;
  v_name   text := p_offer ->> 'model';
  v_input  numeric;
  v_output numeric;
  v_slots  int;
begin
  begin
    v_input := coalesce((p_offer ->> 'price_input')::numeric, infernet.setting_number('price_input_default'));
    v_output := coalesce((p_offer ->> 'price_output')::numeric, infernet.setting_number('price_output_default'));
    v_slots := coalesce((p_offer ->> 'slots')::int, 1);
  exception when invalid_text_representation or numeric_value_out_of_range then
    perform infernet.refuse(422, 'bad_offer', format('The offer for %s has a price or slots that is no number.', v_name));
  end;
  if v_name is null or v_name !~ '^[A-Za-z0-9][A-Za-z0-9._:/-]{0,99}$' then
    perform infernet.refuse(422, 'bad_offer', format('%s is no name of a model.', coalesce(quote_literal(v_name), 'Nothing')));
  elsif v_input = 'NaN' or v_output = 'NaN' or v_input < 0 or v_output < 0
        or greatest(v_input, v_output) > infernet.setting_number('price_max') then
    perform infernet.refuse(422, 'bad_offer',
      format('The prices of %s must be between 0 and %s USD per million tokens.', v_name, infernet.setting_number('price_max')));
  elsif v_slots not between 1 and 1024 then
    perform infernet.refuse(422, 'bad_offer', format('%s needs 1 to 1024 slots.', v_name));
  elsif coalesce(p_offer ->> 'digest', repeat('0', 64)) !~ '^[0-9a-f]{64}$' then
    perform infernet.refuse(422, 'bad_offer', format('The digest of %s is no sha256 in hex.', v_name));
  end if;

  select m.id into v_model from public.models m where m.name = v_name;
  if not found then
    if not infernet.setting('open_models')::boolean then
      perform infernet.refuse(422, 'unknown_model', format('Model %s is not listed here.', v_name),
        'Ask the operator to list it, or offer one of: infernet model ls');
    end if;
    insert into public.models (name, context_length) values (v_name, (p_offer ->> 'context_length')::int)
    on conflict (name) do update set name = excluded.name returning id into v_model;
  end if;

  insert into public.offers as o (provider_id, model_id, price_input, price_output, slots, model_digest,
                                  context_length, approved, listed)
  values (p_node.id, v_model, v_input, v_output, v_slots, p_offer ->> 'digest', (p_offer ->> 'context_length')::int,
          p_node.approval = 'approved', p_node.approval = 'approved' and p_node.is_public)
  on conflict (provider_id, model_id) do update set
    price_input = excluded.price_input, price_output = excluded.price_output, slots = excluded.slots,
    model_digest = excluded.model_digest, context_length = excluded.context_length, enabled = true,
    approved = excluded.approved, listed = excluded.listed
  returning o.id into v_offer;
  insert into infernet.offer_load as l (offer_id, slots) values (v_offer, v_slots)
  on conflict (offer_id) do update set slots = excluded.slots;
  return v_offer;
end $$;
