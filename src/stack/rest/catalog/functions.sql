-- Functions of the exposed schemas ($1 text[]), and whether they can be called
-- by name: all arguments are named, or the only one takes a whole body.
-- Run with an empty search_path, so that type names come out qualified.
with recursive base_type as (
  select t.oid, coalesce(nullif(t.typbasetype, 0), t.oid) as base, t.typbasetype as next
  from pg_catalog.pg_type t
  union
  select b.oid, coalesce(nullif(t.typbasetype, 0), t.oid), t.typbasetype
  from base_type b join pg_catalog.pg_type t on t.oid = b.next
), final_type as (
  select oid, base from base_type where next = 0
)
select
  n.nspname::text as schema,
  p.proname::text as name,
  coalesce(a.names, '{}') as argument_names,
  coalesce(a.types, '{}') as argument_types,
  coalesce(a.call_types, '{}') as call_types,
  coalesce(a.required, '{}') as required,
  p.provariadic <> 0 as variadic,
  p.proretset as returns_set,
  -- OUT and TABLE parameters make a row, whatever the declared type is.
  t.typtype = 'c' or coalesce(p.proargmodes::text[] && '{t,b,o}', false) as returns_row,
  p.prorettype = 'pg_catalog.void'::regtype as returns_void,
  declared.typtype = 'd' and declared.typname like '%/%' as returns_media,
  coalesce(rc.relname, t.typname)::text as row_type,
  p.provolatile = 'v' as volatile,
  (select array_agg(s order by o)
   from unnest(p.proconfig) with ordinality as c (s, o)
   where split_part(s, '=', 1) in ('statement_timeout', 'plan_filter.statement_cost_limit', 'default_transaction_isolation')
  ) as settings,
  case when p.pronargs = 1 then
    (select array[rn.nspname, rr.relname]::text[]
     from pg_catalog.pg_type at
     join pg_catalog.pg_class rr on rr.oid = at.typrelid
     join pg_catalog.pg_namespace rn on rn.oid = rr.relnamespace
     where at.oid = p.proargtypes[0])
  end as takes_row_of,
  coalesce(a.unnamed, 0) = 0
    or a.unnamed = 1 and p.pronargs = 1 and a.type_ids[1] in (
      'pg_catalog.bytea'::regtype, 'pg_catalog.json'::regtype, 'pg_catalog.jsonb'::regtype,
      'pg_catalog.text'::regtype, 'pg_catalog.xml'::regtype) as callable
from pg_catalog.pg_proc p
join pg_catalog.pg_namespace n on n.oid = p.pronamespace
join pg_catalog.pg_type declared on declared.oid = p.prorettype
join final_type f on f.oid = p.prorettype
join pg_catalog.pg_type t on t.oid = f.base
left join pg_catalog.pg_class rc on rc.oid = t.typrelid
left join lateral (
  select
    array_agg(coalesce(i.name, '') order by i.position) as names,
    array_agg(i.type::regtype::text order by i.position) as types,
    -- A length of one is what the bare name would mean.
    array_agg(case i.type
        when 'pg_catalog.bit'::regtype then 'bit varying'
        when 'pg_catalog.bit[]'::regtype then 'bit varying[]'
        when 'pg_catalog.bpchar'::regtype then 'character varying'
        when 'pg_catalog.bpchar[]'::regtype then 'character varying[]'
        else i.type::regtype::text
      end order by i.position) as call_types,
    array_agg(i.position <= p.pronargs - p.pronargdefaults order by i.position) as required,
    count(*) filter (where i.name is null or i.name = '') as unnamed,
    array_agg(i.type) as type_ids
  from (
    select m.name, m.type, row_number() over (order by m.place) as position
    from unnest(coalesce(p.proallargtypes, p.proargtypes::oid[]), p.proargnames, p.proargmodes)
      with ordinality as m (type, name, mode, place)
    where coalesce(m.mode, 'i') in ('i', 'b', 'v')
  ) i
) a on true
where p.prokind = 'f'
  and n.nspname = any ($1)
order by 1, 2, p.pronargs, a.types
